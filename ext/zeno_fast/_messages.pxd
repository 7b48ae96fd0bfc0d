from libc.stdint cimport uint64_t

cdef enum:
    MAX_DIGITS = 20

cdef size_t write_decimal(uint64_t number, char *digits) noexcept
cdef uint64_t number_of(str id, str prefix) except? 0
cdef uint64_t answer_number(const char *line, size_t nbytes, bytes head) noexcept
cdef uint64_t match_answer(
    const char *line, size_t nbytes, bytes head, const char **data, size_t *length) noexcept
cdef bint is_message(dict value)
cdef list split_damaged(bytes line)

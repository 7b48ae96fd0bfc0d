from libc.stdint cimport int64_t, uint64_t

cdef enum:
    MAX_DIGITS = 20
    SHOWN = 512  # bytes of a line that are looked at, or logged, where the rest is of no use

cdef size_t write_decimal(uint64_t number, char *digits) noexcept
cdef uint64_t number_of(str id, str prefix) except? 0
cdef uint64_t first_number(const char *line, size_t nbytes, str prefix) except? 0
cdef uint64_t match_answer(
    const char *line, size_t nbytes, bytes head, const char **data, size_t *length) noexcept
cdef bint is_message(dict value)
cdef int64_t framed_nbytes(bytes line) except? -1
cdef uint64_t last_number(bytes end, str prefix) except? 0
cdef object kind_of(bytes begin, bytes end)
cdef object host_call_id(bytes begin, bytes end)
cdef list split_damaged(bytes line)

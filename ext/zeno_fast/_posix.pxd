from libc.stdint cimport int64_t

cdef size_t WIDE_PIPE

cdef int64_t monotonic_ns() noexcept nogil
cdef void widen(int fd) noexcept nogil
cdef Py_ssize_t write_once(int fd, const char *data, size_t nbytes, int *error) noexcept nogil
cdef Py_ssize_t write_unkilled(
    int fd, const char *data, size_t nbytes, int *error) noexcept nogil
cdef void write_byte(int fd, char byte) noexcept nogil

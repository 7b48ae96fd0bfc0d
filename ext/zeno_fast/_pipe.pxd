from libc.stdint cimport int64_t, uint32_t

cdef enum:
    READABLE = 1
    WRITABLE = 2
    EXITED = 4

cdef extern from "zeno_blocking_read.h" nogil:
    ctypedef struct zb_reader:
        int fd

cdef uint32_t zb_forks() noexcept

cdef enum:
    AGAIN = -1
    FAILED = -2
    NO_MEMORY = -3
    TOO_LONG = -4
    INTERRUPTED = -5

cdef int64_t monotonic_ns() noexcept nogil

cdef class Pipe:
    cdef readonly int read_fd
    cdef readonly int write_fd
    cdef readonly int exit_fd
    cdef int _wake_in
    cdef int _wake_out
    cdef char *_buffer
    cdef size_t _capacity
    cdef size_t _start
    cdef size_t _end
    cdef size_t _scanned
    cdef readonly size_t max_line
    cdef zb_reader _reader
    cdef bint _alone
    cdef int _misses
    cdef int _skip
    cdef Py_ssize_t fill(self) noexcept nogil
    cdef Py_ssize_t fill_soon(self, int64_t deadline_ns) noexcept nogil
    cdef Py_ssize_t _spin(self) noexcept nogil
    cdef Py_ssize_t _block(self) noexcept nogil
    cdef int _make_room(self) noexcept nogil
    cdef bint next_line(self, const char **line, size_t *nbytes) noexcept nogil
    cdef void take_rest(self, const char **text, size_t *nbytes) noexcept nogil
    cdef void relax(self) noexcept nogil
    cdef int wait(self, int interest, int64_t deadline_ns) noexcept nogil
    cdef void wake(self) noexcept nogil

from libc.stdint cimport uint64_t

from zeno_fast._pipe cimport Pipe

cdef enum:
    SMALL = 32768  # bytes of a part up to which copying it costs less than a write of its own

cdef struct Bytes:
    char *data
    size_t start
    size_t end
    size_t capacity

cdef class Output:
    cdef Pipe _pipe
    cdef Bytes _first
    cdef object _parts
    cdef Py_ssize_t _offset
    cdef bint _widened
    cdef Bytes _last
    cdef readonly Py_ssize_t nbytes
    cdef uint64_t written
    cdef readonly bint writing
    cdef readonly bint full
    cdef readonly bint broken
    cdef char *room(self, size_t nbytes) except NULL
    cdef void added(self, size_t nbytes) noexcept
    cdef int put_bytes(self, bytes part) except -1
    cdef int flush(self) except -1
    cdef int clear(self) except -1
    cdef void _swap(self) noexcept
    cdef Py_ssize_t _write(self, const char *data, size_t nbytes) noexcept
    cdef Py_ssize_t _put(self, const char *data, size_t nbytes) noexcept

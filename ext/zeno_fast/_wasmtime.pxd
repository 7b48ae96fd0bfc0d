cimport cython
from libc.stdint cimport int64_t

from zeno_fast.wasmtime_c cimport Library

cdef Library lib  # all NULL where MISMATCH says why

cdef void *pointer_of(object managed) except NULL
cdef tuple why_ended(void *trap, void *error)

cpdef int64_t now_ns() noexcept nogil
cdef int64_t deadline_after(int64_t now, double seconds) noexcept nogil


@cython.final
cdef class Watch:
    cdef void *_watch  # a zw_watch: what its header defines is of no use to other modules
    cdef BaseException raised  # by Python code that ran inside the call
    cdef int begin(self, void *context, long thread, int64_t now, int64_t deadline) except -1
    cdef void end(self) noexcept
    cdef void expire(self) noexcept
    cdef bint has_expired(self) noexcept
    cdef int64_t deadline(self) noexcept

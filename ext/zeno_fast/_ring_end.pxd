from libc.stdint cimport int64_t, uint64_t

from zeno_fast._lines cimport LongLine
from zeno_fast._shm cimport Segment, zr_reader, zr_writer

cdef enum:
    # A guest that is awake answers within this; longer, and sleeping costs less than waiting.
    SPIN_NS = 30_000

cdef class RingEnd:
    cdef Segment segment
    cdef int wake_fd
    cdef bint corrupt
    cdef bint resting
    cdef LongLine long_message
    cdef zr_reader reader  # of what the guest writes
    cdef zr_writer writer
    cdef size_t _max_message
    cdef bint _alone
    cdef uint64_t _wanted  # bytes for which `writer` had no room
    cdef char *_message
    cdef size_t _nbytes
    cdef size_t _capacity
    cdef bint rest(self) noexcept nogil
    cdef void stir(self) noexcept nogil
    cdef Py_ssize_t put(self, const char *data, size_t nbytes) noexcept nogil
    cdef bint has_room(self) noexcept nogil
    cdef bint _wait_for_room(self, uint64_t wanted) noexcept nogil
    cdef void _nudge(self) noexcept nogil
    cdef void collect(self) noexcept nogil
    cdef int next_message(self, const char **message, size_t *nbytes) noexcept nogil
    cdef bint _take_record(self, int64_t nbytes) noexcept nogil
    cdef bint _make_room(self, size_t nbytes) noexcept nogil
    cdef void relax(self) noexcept nogil

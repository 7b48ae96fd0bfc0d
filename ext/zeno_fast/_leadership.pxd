from libc.stdint cimport int64_t, uint32_t

from zeno_fast._call cimport Call
from zeno_fast._listener cimport Listener

cdef class Leadership(Listener):
    cdef uint32_t _forks
    cdef dict _followers
    cdef tuple _watchers
    cdef bint _leading
    cdef unsigned long _leader
    cdef bint _polling
    cdef bint _closed
    cdef int write_out(self) except -1
    cdef int _send_queued(self) except -1
    cdef int _tell_leader(self) except -1
    cdef int _await(self, Call call) except -1
    cdef int _lead_until(self, Call call, int64_t deadline_ns) except -1
    cdef bint _follow(self, Call call, int64_t deadline_ns) except? False
    cdef int _stop_following(self, Call call) except -1
    cdef int _stand_in(self) except -1
    cdef void _take_lead(self) noexcept
    cdef int _lead(self, Call call, int64_t deadline_ns) except -1
    cdef Call _blocking_call(self)
    cdef int _turn_once(self) except -1
    cdef int _pass_on(self) except -1
    cdef int _expire(self, Call call) except -1
    cdef int _end(self) except -1
    cdef int _read(self, int64_t soon_ns=*) except -1
    cdef int _drain(self) except -1

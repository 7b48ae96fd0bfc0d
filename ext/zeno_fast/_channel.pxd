from libc.stdint cimport int64_t, uint32_t, uint64_t

from zeno_fast._call cimport Call, RequestTemplate
from zeno_fast._output cimport Output
from zeno_fast._pipe cimport Pipe

cdef class Channel:
    cdef Pipe _pipe
    cdef object _owner
    cdef str _plugin
    cdef bytes _id_head
    cdef bytes _answer_head
    cdef str _prefix
    cdef uint64_t _number
    cdef uint64_t _heard
    cdef int _unheard
    cdef uint32_t _forks
    cdef dict _pending
    cdef Call _newest
    cdef object _queue
    cdef dict _followers
    cdef Output _output
    cdef Py_ssize_t _max_queue
    cdef tuple _watchers
    cdef bint _multiplexed
    cdef bint _leading
    cdef unsigned long _leader
    cdef bint _polling
    cdef bint _ended
    cdef bint _lost
    cdef bint _strict
    cdef bint _closed
    cdef readonly uint64_t calls
    cdef readonly uint64_t stray
    cdef readonly uint64_t noise
    cdef object exchange(
        self, RequestTemplate template, bytes payload, int64_t deadline_ns, object scope)
    cdef Call _new_call(
        self, RequestTemplate template, bytes payload, int64_t deadline_ns, object scope, int kind
    )
    cdef int _start(self, Call call, bint flush) except -1
    cdef int _send_call(self, Call call, bint flush) except -1
    cdef int _tell_leader(self) except -1
    cdef int _await(self, Call call) except -1
    cdef int _lead_until(self, Call call, int64_t deadline_ns) except -1
    cdef bint _follow(self, Call call, int64_t deadline_ns) except? False
    cdef int _stop_following(self, Call call) except -1
    cdef void _take_lead(self) noexcept
    cdef int _lead(self, Call call, int64_t deadline_ns) except -1
    cdef int64_t _next_deadline(self, int64_t deadline_ns) except? -1
    cdef int _turn_once(self) except -1
    cdef int _pass_on(self) except -1
    cdef int _finish(self, Call call, object data, object error) except -1
    cdef int _abandon(self, Call call) except -1
    cdef int _expire(self, Call call) except -1
    cdef int _give_up_on_abandoned(self) except -1
    cdef int _end(self) except -1
    cdef int _read(self, int64_t soon_until=*) except -1
    cdef int _drain(self) except -1
    cdef int _break(self, str what) except -1
    cdef int _take_line(self, const char *line, size_t nbytes) except -1
    cdef bint _take_invalid_answer(self, const char *line, size_t nbytes) except -1
    cdef bint _take_plain_answer(self, const char *line, size_t nbytes) except -1
    cdef int _take_noise(self, bytes text) except -1
    cdef int _take_message(self, dict message) except -1
    cdef int _take_response(self, dict message) except -1
    cdef int _send_queued(self) except -1

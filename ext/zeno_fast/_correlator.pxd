from libc.stdint cimport int64_t, uint64_t

from zeno_fast._call cimport Call, RequestTemplate
from zeno_fast._output cimport Output
from zeno_fast._pending cimport PendingCalls
from zeno_fast._pipe cimport Pipe

cdef enum:
    MAX_UNREAD = 64 * 1024 * 1024  # bytes that a guest may leave unread before it gets no more

cdef class Correlator:
    cdef Pipe _pipe
    cdef Output _output
    cdef object _owner
    cdef str _plugin
    cdef bytes _id_head
    cdef str _prefix
    cdef uint64_t _number
    cdef uint64_t _heard
    cdef Py_ssize_t _stale  # bytes of the unfinished line that were there before the last request
    cdef uint64_t _alone  # number of the call that has the channel to itself, or 0
    cdef PendingCalls _pending
    cdef Call _newest
    cdef object _queue
    cdef dict _given_up
    cdef object _finished
    cdef bint _delivering
    cdef Py_ssize_t _max_queue
    cdef Py_ssize_t _max_request
    cdef Py_ssize_t _watched
    cdef bint _cancels
    cdef bint _tells_deadline
    cdef bint _multiplexed
    cdef bint _ended
    cdef bint _lost
    cdef object _reason
    cdef uint64_t _last_call  # how many calls it takes
    cdef readonly uint64_t calls
    cdef readonly uint64_t stray
    cdef readonly uint64_t late
    cdef Py_ssize_t load(self) noexcept
    cdef bint full(self) noexcept
    cdef Call new_call(
        self, RequestTemplate template, bytes payload, int64_t deadline_ns, object scope, int kind
    )
    cdef int _admit(self, RequestTemplate template, bytes payload) except -1
    cdef int _tell_if_spent(self) except -1
    cdef int _put_call(self, Call call) except -1
    cdef Py_ssize_t _write_request(
        self, RequestTemplate template, bytes payload, uint64_t number, int64_t left_ns
    ) except -1
    cdef int _take_up(self, Call call, uint64_t number) except -1
    cdef int _finish(self, Call call, object data, object error) except -1
    cdef void _watch(self, Call call) noexcept
    cdef void _unwatch(self, Call call) noexcept
    cdef int _deliver(self) except -1
    cdef int _keep_abandoned(self, Call call, int64_t deadline_ns) except -1
    cdef int _abandon(self, Call call) except -1
    cdef int _put_cancel(self, Call call) except -1
    cdef int _give_up_on_abandoned(self) except -1
    cdef int _break(self, str what, object kind=*) except -1
    cdef object _why(self, Call call, object reason)

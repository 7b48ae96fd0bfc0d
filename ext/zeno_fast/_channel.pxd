from libc.stdint cimport int64_t

from zeno_fast._call cimport Call, RequestTemplate
from zeno_fast._leadership cimport Leadership

cdef class Channel(Leadership):
    cdef object exchange(
        self, RequestTemplate template, bytes payload, int64_t deadline_ns, object scope)
    cdef int begin(self, Call call) except -1
    cdef object take_answer(self, Call call)
    cdef object _wait_and_take(self, Call call)
    cdef bint _undisturbed(self) noexcept
    cdef object _exchange_alone(
        self, RequestTemplate template, bytes payload, int64_t deadline_ns, object scope,
        object watcher)
    cdef int _start(self, Call call, bint flush) except -1
    cdef int _refuse_fork(self) except -1

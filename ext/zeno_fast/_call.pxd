from libc.stdint cimport int64_t, uint64_t

from zeno_fast._statistics cimport SlotStatistics

cdef extern from "pythread.h":
    ctypedef void *PyThread_type_lock

cdef enum:
    THREAD = 0
    FUTURE = 1
    LOOP = 2

cdef class RequestTemplate:
    cdef readonly str slot
    cdef readonly bint idempotent
    cdef readonly SlotStatistics statistics
    cdef bytes middle

cdef class Call:
    cdef uint64_t number  # 0 until it is sent
    cdef RequestTemplate template
    cdef bytes payload
    cdef readonly object scope
    cdef object data
    cdef object error
    cdef object target
    cdef readonly object watcher  # reads for it, and gets it when it is finished
    cdef uint64_t offset  # of its request in all that its channel has sent, in bytes
    cdef uint64_t heard  # reads of the channel before it was sent
    cdef int64_t began_ns
    cdef int64_t deadline_ns
    cdef int kind
    cdef readonly object within  # the HostCall that it was made in, or None
    cdef object blocks  # of shared memory that it refers to, or None
    cdef object sink  # of a stream: takes its chunks
    cdef object channel  # of a pipeline: where it was sent
    cdef bint done
    cdef readonly bint ready  # whoever waits for it has something to look at
    cdef bint ping
    cdef bint postponed  # expired later than it was due, once
    cdef bint watched  # counted by its channel: nobody but a watcher reads for it
    cdef bint waiting
    cdef bint abandoned
    cdef bint _gate_open
    cdef PyThread_type_lock _gate
    cdef int sleep(self, int64_t timeout_us) except -1
    cdef void wake(self) noexcept

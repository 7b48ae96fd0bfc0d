from libc.stdint cimport int64_t

from zeno_fast._call cimport RequestTemplate
from zeno_fast._channel cimport Channel
from zeno_fast._bytes cimport BinaryWay
from zeno_fast._envelope cimport InputCheck

cdef class Route:
    cdef Channel _only
    cdef tuple _channels
    cdef bint _grows
    cdef Channel choose(self)

cdef class DirectSlot:
    cdef readonly object definition
    cdef readonly RequestTemplate template
    cdef Route _route
    cdef InputCheck _check
    cdef int64_t _timeout_ns
    cdef str _plugin
    cdef object _exchange
    cdef BinaryWay _way
    cdef dict _kept
    cpdef bytes encode(self, object parameters)
    cpdef object kept_for(self, bytes payload)
    cdef int64_t deadline_of(self, int64_t began_ns, object timeout) except -1
    cdef object _call(self, bytes payload, int64_t deadline_ns, scope)
    cdef object _call_with_blocks(self, bytes payload, int64_t deadline_ns, scope)
    cpdef int64_t deadline_ns(self, object timeout) except -1

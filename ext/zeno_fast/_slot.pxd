from libc.stdint cimport int64_t

from zeno_fast._call cimport RequestTemplate
from zeno_fast._channel cimport Channel
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
    cpdef bytes encode(self, object parameters)
    cpdef int64_t deadline_ns(self, object timeout) except -1

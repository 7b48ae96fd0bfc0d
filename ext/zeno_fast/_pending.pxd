from libc.stdint cimport uint64_t

from zeno_fast._call cimport Call

cdef class PendingCalls:
    cdef list _table
    cdef dict _others
    cdef uint64_t _last
    cdef Py_ssize_t count
    cdef int add(self, Call call) except -1
    cdef Call get(self, uint64_t number)
    cdef Call take(self, uint64_t number)
    cdef Call sole(self)
    cdef Call take_sole(self)
    cdef list calls(self)

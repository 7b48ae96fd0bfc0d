from libc.stdint cimport int64_t

cdef object current_host_call()
cdef int64_t inherited(int64_t deadline_ns) except? -1

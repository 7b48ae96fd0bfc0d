from libc.stdint cimport int64_t, uint64_t

cdef extern from "zeno_histogram.h":
    ctypedef struct zh_histogram:
        uint64_t count
        uint64_t sum_ns
        uint64_t max_ns

cdef class SlotStatistics:
    cdef zh_histogram _histogram
    cdef readonly uint64_t errors
    cdef readonly uint64_t timeouts
    cdef void record(self, int64_t ns) noexcept
    cdef int failed(self, object error, int64_t ns) except -1

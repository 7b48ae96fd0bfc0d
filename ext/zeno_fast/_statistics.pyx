"""How many calls of a slot there were, how they ended, and how long they took."""

cimport cython
from libc.stdint cimport int64_t, uint64_t
from libc.string cimport memset

import zeno_fast.errors

cdef extern from "zeno_histogram.h":
    void zh_record(zh_histogram *histogram, uint64_t ns) noexcept
    void zh_merge(zh_histogram *histogram, const zh_histogram *other) noexcept
    uint64_t zh_quantile(const zh_histogram *histogram, double part) noexcept


@cython.final
cdef class SlotStatistics:
    """Counts the calls of one slot; recording one costs some nanoseconds.

    What is refused before it reaches a guest, such as wrong parameters, is no call.
    """

    def __cinit__(self):
        memset(&self._histogram, 0, sizeof(zh_histogram))

    @property
    def calls(self):
        """Number of calls that have ended, one way or the other."""
        return self._histogram.count

    def merge(self, SlotStatistics other):
        """Add what another has counted."""
        zh_merge(&self._histogram, &other._histogram)
        self.errors += other.errors
        self.timeouts += other.timeouts

    def summary(self):
        """Return the counts, and under `latency` percentiles in seconds or None."""
        cdef uint64_t count = self._histogram.count
        latency = None
        if count:
            latency = {
                "mean": self._histogram.sum_ns / count / 1e9,
                "p50": zh_quantile(&self._histogram, 0.5) / 1e9,
                "p90": zh_quantile(&self._histogram, 0.9) / 1e9,
                "p99": zh_quantile(&self._histogram, 0.99) / 1e9,
                "max": self._histogram.max_ns / 1e9,
            }
        return {
            "calls": count, "errors": self.errors, "timeouts": self.timeouts, "latency": latency,
        }

    cdef void record(self, int64_t ns) noexcept:
        """Count a call that was answered after so many nanoseconds."""
        zh_record(&self._histogram, <uint64_t> ns if ns > 0 else 0)

    cdef int failed(self, object error, int64_t ns) except -1:
        """Count a call that ended with an error."""
        self.record(ns)
        self.errors += 1
        if isinstance(error, zeno_fast.errors.SlotTimeout):
            self.timeouts += 1
        return 0

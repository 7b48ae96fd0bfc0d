"""One call to a sidecar, from its admission to its answer, and how its thread sleeps meanwhile."""

cimport cython
from libc.stdint cimport int64_t

from zeno_fast._statistics cimport SlotStatistics

import orjson

import zeno_fast.errors

cdef extern from "pythread.h":
    ctypedef long long PY_TIMEOUT_T
    ctypedef enum PyLockStatus:
        PY_LOCK_FAILURE
        PY_LOCK_ACQUIRED
        PY_LOCK_INTR
    PyThread_type_lock PyThread_allocate_lock()
    void PyThread_free_lock(PyThread_type_lock) noexcept
    void PyThread_release_lock(PyThread_type_lock) noexcept nogil
    int PyThread_acquire_lock(PyThread_type_lock, int) noexcept nogil
    PyLockStatus PyThread_acquire_lock_timed(
        PyThread_type_lock, PY_TIMEOUT_T, int) noexcept nogil


class NotSent(Exception):
    """The channel ended before the request reached the guest; another process may have it."""


@cython.final
cdef class RequestTemplate:
    """The constant part of the requests for one slot, encoded once.

    Args:
        slot: Its name.
        idempotent: Whether a call may be sent again that a guest has had and not answered.
        statistics: Counts its calls; None for those of the life-cycle.
    """

    def __init__(self, str slot, bint idempotent=False, SlotStatistics statistics=None):
        self.slot = slot
        self.statistics = statistics
        self.idempotent = idempotent
        self.middle = b'","slot_name":' + orjson.dumps(slot) + b',"parameters":'


@cython.final
@cython.freelist(512)
cdef class Call:
    """One call; made by its channel, which alone changes it."""

    def __cinit__(self):
        self._gate = NULL

    def __dealloc__(self):
        if self._gate is not NULL:
            PyThread_free_lock(self._gate)

    @property
    def finished(self):
        """Whether there is an answer or an error."""
        return self.done

    @property
    def repeatable(self):
        """Whether it failed with its process, and another may have it: it did not get that far, or
        its slot says that twice does no harm.
        """
        return isinstance(self.error, NotSent) or (
            self.template.idempotent and isinstance(self.error, zeno_fast.errors.PluginCrashed))

    @property
    def parameters(self):
        """The encoded parameters."""
        return self.payload

    @property
    def deadline(self):
        """When it expires, in nanoseconds on the clock of time.monotonic_ns."""
        return self.deadline_ns

    @property
    def request(self):
        """The constant part of its request."""
        return self.template

    @property
    def slot(self):
        """The slot that is called."""
        return self.template.slot

    @property
    def request_nbytes(self):
        """Size of the encoded parameters in bytes."""
        return len(self.payload)

    @property
    def future(self):
        """The future that waits for the answer, or None for a call of a thread."""
        return self.target

    def unready(self):
        """Note that what was there of a stream has been taken; only its end makes it ready now."""
        self.ready = self.done

    def take(self):
        """Return the data of a finished call, or raise its error."""
        error = self.error
        if error is not None:
            self.error = None  # or its traceback and the caller's frame would keep each other
            raise error
        return self.data

    def let_go(self):
        """Let go of the future and the watcher of a call whose task needs them no more.

        The error holds the frames that hold this call: the future holds the error, and the watcher
        a descriptor.
        """
        self.target = self.watcher = None

    def settle(self):
        """Give the answer to the future; its own thread calls this for an event loop's."""
        if self.sink is not None:
            self.sink.wake()
            return
        target, data, error = self.target, self.data, self.error
        # Whoever watches the deadline keeps the call; nobody needs what it carried any more.
        self.data = self.error = None
        self.payload = b""
        if target is None:
            return  # it was settled before an exception could say so, or its task has gone
        if self.kind == LOOP:
            if target.done() or target.get_loop().is_closed():
                return
        else:
            self.target = None  # its task, in a loop, finds it here
            if not target.set_running_or_notify_cancel():
                return
        if error is not None:
            target.set_exception(error)
        else:
            target.set_result(data)

    cdef int sleep(self, int64_t timeout_us) except -1:
        """Sleep until `wake` (1), the timeout or a signal (0); `waiting` must be set."""
        cdef PyLockStatus got
        if self._gate is NULL:
            self._gate = PyThread_allocate_lock()
            if self._gate is NULL:
                raise MemoryError
            PyThread_acquire_lock(self._gate, 0)
        with nogil:
            got = PyThread_acquire_lock_timed(self._gate, timeout_us, 1)
        if got == PY_LOCK_ACQUIRED:
            self._gate_open = False
        return got == PY_LOCK_ACQUIRED

    cdef void wake(self) noexcept:
        """End the `sleep` of the call's thread, where it is in one."""
        if self.waiting and not self._gate_open and self._gate is not NULL:
            self._gate_open = True
            PyThread_release_lock(self._gate)

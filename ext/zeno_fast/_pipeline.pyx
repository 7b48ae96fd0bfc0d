"""Calls one slot many times, many of the calls on their way at once, and gives answers in order."""

cimport cython
from cpython.bytes cimport PyBytes_GET_SIZE
from cpython.list cimport PyList_GET_SIZE
from libc.stdint cimport int64_t

from zeno_fast._call cimport THREAD, Call
from zeno_fast._channel cimport Channel
from zeno_fast._posix cimport monotonic_ns
from zeno_fast._slot cimport DirectSlot

from zeno_fast._call import NotSent
from zeno_fast.errors import PluginCrashed, PluginUnavailable, SlotError


cdef extern from "Python.h":
    const Py_ssize_t PY_SSIZE_T_MAX

cdef Py_ssize_t MOST_TAKEN = 256  # places in a window whose calls are gone already
cdef int64_t SLOW_NS = 1_000_000  # a source that takes longer is not read ahead


@cython.final
cdef class Pipeline:
    """An iterator over the data of one call for each of a source's parameters; for one thread.

    It reads ahead in the source, by a window that the caller bounds, and writes the requests of
    half a window at once. What fails, a call or the source, is raised in its turn.

    Args:
        slot: Which to call.
        driver: Gives the running processes by `workers(deadline_ns)`, or raises Superseded; calls
            anew by `exchange` what a process that ended had not been sent; is told by `succeeded`.
        source: An iterator of parameters.
        timeout: Seconds for each call, or None.
        scope: For each call, or None.
        width: How many calls may be on their way.
        max_nbytes: How many bytes of encoded parameters may be sent at once.
    """

    cdef DirectSlot _slot
    cdef object _driver
    cdef object _source
    cdef object _timeout
    cdef object _scope
    cdef Py_ssize_t _width
    cdef Py_ssize_t _max_nbytes
    cdef list _window  # calls that are on their way or answered, in order, from
    cdef Py_ssize_t _first  # this one on
    cdef tuple _workers  # the processes that take calls now, and
    cdef tuple _channels  # the way to each
    cdef set _used  # processes that were sent any
    cdef bytes _held  # encoded parameters that could not be sent yet
    cdef object _failure  # what the source raised
    cdef bint _exhausted
    cdef bint _forgives

    def __init__(
        self, DirectSlot slot, driver, source, timeout, scope, Py_ssize_t width,
        Py_ssize_t max_nbytes,
    ):
        self._slot = slot
        self._driver = driver
        self._source = source
        self._timeout = timeout
        self._scope = scope
        self._width = width
        self._max_nbytes = max_nbytes
        self._window = []
        self._workers = self._channels = ()
        self._used = set()

    def __iter__(self):
        return self

    def __next__(self):
        cdef Call call
        cdef int64_t later_ns
        if self._open() <= self._width // 2 and (not self._exhausted or self._held):
            self._fill()
            while not self._open() and (not self._exhausted or self._held):
                self._fill()  # the process that was to have them has just ended
        if not self._open():
            failure, self._failure = self._failure, None
            if failure is not None:
                raise failure
            raise StopIteration
        call = self._take_first()
        if not call.done:
            # Its time counts from when the one before it was answered: they wait for each other.
            later_ns = self._slot.deadline_ns(self._timeout) - call.deadline_ns
            if later_ns > 0:
                call.began_ns += later_ns
                call.deadline_ns += later_ns
        try:
            data = (<Channel> call.channel).take_answer(call)
        except NotSent:
            data = self._again(call)
        except PluginCrashed:
            if not call.template.idempotent:
                raise
            data = self._again(call)
        except SlotError:
            raise
        except BaseException:
            self._slot.hold_late(call.blocks)
            raise
        if self._forgives:
            self._forgives = False
            self._driver.succeeded()
        return data

    def take_held(self):
        """Return the encoded parameters that were taken from the source and not sent, or None.

        With them comes what they refer to; see `DirectSlot.kept_for`.
        """
        held, self._held = self._held, None
        return held if held is None else (held, self._slot.kept_for(held))

    def close(self):
        """Give up the calls that are on their way. Idempotent."""
        cdef Call call
        self._exhausted = True
        self._held = None
        while self._open():
            call = self._take_first()
            (<Channel> call.channel).abandon(call)
            self._slot.hold_late(call.blocks)
        while self._used:
            self._driver.release(self._used.pop())

    cdef Py_ssize_t _open(self) noexcept:
        """Count the calls whose answers have not been given to the caller."""
        return PyList_GET_SIZE(self._window) - self._first

    cdef Call _take_first(self):
        """Take the first of them out of the window."""
        cdef Call call = <Call> self._window[self._first]
        self._window[self._first] = None
        self._first += 1
        if self._first >= MOST_TAKEN:
            del self._window[:self._first]
            self._first = 0
        return call

    cdef object _again(self, Call call):
        return self._driver.exchange(call.template, call.payload, call.deadline_ns, call.scope)

    cdef int _fill(self) except -1:
        """Send calls until the window is full, or until a process takes no more for now."""
        cdef int64_t deadline_ns = self._slot.deadline_ns(self._timeout)
        cdef int64_t now_ns = monotonic_ns()
        cdef int64_t before_ns
        cdef Py_ssize_t nbytes = 0
        cdef Py_ssize_t width = self._width
        cdef bytes payload
        cdef Channel channel
        # Where none runs, those calls are failing; they come first.
        if self._open():
            workers = self._driver.running_workers
        else:
            workers = self._driver.workers(deadline_ns)
        if not workers:
            return 0
        if workers is not self._workers:
            self._workers = workers
            self._channels = tuple([worker.channel for worker in workers])
            self._used.update(workers)
        self._forgives = self._driver.failures > 0
        for channel in self._channels:
            if not channel.returns_ids:
                # Each takes one at a time, and has the next at hand.
                width = min(width, 2 * len(self._channels))
                break
        try:
            while self._open() < width and nbytes < self._max_nbytes:
                before_ns = now_ns
                payload = self._next_payload()
                if payload is None:
                    break
                nbytes += PyBytes_GET_SIZE(payload)
                now_ns = monotonic_ns()
                if not self._send(payload, now_ns):
                    break
                if now_ns - before_ns > SLOW_NS:
                    break  # what is on its way is worth more than a full window
        finally:
            for channel in self._channels:
                channel.write_out()
        return 0

    cdef bytes _next_payload(self):
        """Return the next encoded parameters; None at the end of the source, or its failure."""
        cdef bytes held = self._held
        if held is not None:
            self._held = None
            return held
        try:
            return self._slot.encode(next(self._source))
        except StopIteration:
            self._exhausted = True
        except Exception as error:
            self._exhausted = True
            self._failure = error
        return None

    cdef bint _send(self, bytes payload, int64_t now_ns) except -1:
        """Start a call; False where it has to be tried again later."""
        cdef Channel channel = self._least_busy()
        cdef Call call = channel.new_call(
            self._slot.template, payload, self._slot.deadline_of(now_ns, self._timeout),
            self._scope, THREAD)
        call.channel = channel
        call.began_ns = now_ns
        call.blocks = self._slot.kept_for(payload)
        try:
            channel.begin(call)
        except (NotSent, PluginUnavailable) as error:
            # Either the process has just ended, or others fill its queue.
            if type(error) is not NotSent and not self._open():
                raise
            self._held = payload
            self._slot.keep_for(payload, call.blocks)
            return False
        if not channel.returns_ids:
            channel.owner.track(call)  # the iterator may be kept and never read on
        self._window.append(call)
        return True

    cdef Channel _least_busy(self):
        cdef Channel channel
        cdef Channel best = self._channels[0]
        cdef Py_ssize_t load
        cdef Py_ssize_t least
        if len(self._channels) > 1:
            least = PY_SSIZE_T_MAX
            for channel in self._channels:
                load = PY_SSIZE_T_MAX - 1 if channel.full() else channel.load()
                if load < least:
                    best = channel
                    least = load
        return best

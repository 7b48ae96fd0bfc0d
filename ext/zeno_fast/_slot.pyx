"""The shortest way from a caller to a running sidecar and back."""

cimport cython
from libc.stdint cimport int64_t

import time

from zeno_fast._bytes cimport BinaryWay
from zeno_fast._call cimport RequestTemplate
from zeno_fast._channel cimport Channel
from zeno_fast._envelope cimport InputCheck, dump_parameters
from zeno_fast._nesting cimport inherited
from zeno_fast._posix cimport monotonic_ns
from zeno_fast._statistics cimport SlotStatistics

from zeno_fast._call import NotSent
from zeno_fast.errors import PluginCrashed, SlotError

LATE = 15.0  # seconds after which a guest that overran has answered or was replaced


@cython.final
cdef class Route:
    """Where the calls of one plugin go at this moment."""

    def __cinit__(self):
        self._channels = ()

    def lead_to(self, channels, grows):
        """Let calls go over the least busy of some channels.

        Args:
            channels: A tuple; none where the driver has to be asked first.
            grows: Whether it has to be asked, too, where no channel is idle.
        """
        self._only = channels[0] if len(channels) == 1 and not grows else None
        self._channels = channels
        self._grows = grows

    def pick(self):
        """Return the least busy channel, or None where the driver has to be asked."""
        return self.choose()

    cdef Channel choose(self):
        cdef Channel channel
        cdef Channel best = self._only
        cdef Py_ssize_t load
        cdef Py_ssize_t least = 0
        if best is not None:
            return best
        for channel in self._channels:
            if channel.full():
                continue
            load = channel.load()
            if load == 0:
                return channel
            if best is None or load < least:
                best = channel
                least = load
        return None if self._grows else best


cdef class DirectSlot:
    """One slot of a sidecar plugin; calls over the route's channel, else through `exchange`.

    Args:
        definition: The slot.
        route: Shared by the plugin's slots; the driver changes it.
        timeout: Seconds that a call may take where the caller does not say.
        exchange: The driver's way, which starts a process where none runs; it is given the
            template, the encoded parameters, the deadline and the scope.
        statistics: Counts the calls.
        way: How bytes go to the plugin.
    """

    def __init__(
        self, definition, Route route, double timeout, exchange, SlotStatistics statistics,
        BinaryWay way=None,
    ):
        self.definition = definition
        self.template = RequestTemplate(
            definition.name, definition.idempotent, statistics)
        self._route = route
        self._check = InputCheck(definition)
        self._timeout_ns = _nanoseconds(timeout)
        self._plugin = definition.plugin
        self._exchange = exchange
        self._way = way
        self._kept = {}

    cpdef bytes encode(self, object parameters):
        """Check parameters against the slot's inputs and return them as JSON.

        Where there is something `kept_for` the result, it has to be taken.
        """
        cdef BinaryWay way = self._way
        cdef bytes payload = dump_parameters(self._check.check(parameters), self._check, way)
        if way is not None and way.blocks is not None:
            blocks, way.blocks = way.blocks, None
            self._kept[id(payload)] = blocks
        return payload

    cpdef object kept_for(self, bytes payload):
        """Return the blocks that encoded parameters refer to, or None; once.

        They are to be held until the guest has answered, and for longer where it may not have.
        """
        return self._kept.pop(id(payload), None) if self._kept else None

    def keep_for(self, bytes payload, blocks):
        """Undo `kept_for`."""
        if blocks is not None:
            self._kept[id(payload)] = blocks

    def hold_late(self, blocks):
        """Keep blocks of a call that ended without an answer, while a guest may look at them."""
        if blocks is not None:
            self._way.arena.keep_until(blocks, time.monotonic() + LATE)

    def timeout_ns(self, timeout):
        """Return how long a call may take, in nanoseconds."""
        return self._timeout_ns if timeout is None else _nanoseconds(timeout)

    cpdef int64_t deadline_ns(self, object timeout) except -1:
        """Return when a call that starts now expires, on the clock of time.monotonic_ns.

        Not after the call whose guest asked the host for what it is made for.
        """
        return self.deadline_of(monotonic_ns(), timeout)

    cdef int64_t deadline_of(self, int64_t began_ns, object timeout) except -1:
        """Return what `deadline_ns` does, for a call that starts then."""
        return inherited(
            began_ns + (self._timeout_ns if timeout is None else _nanoseconds(timeout)))

    def call(self, parameters, timeout, scope):
        """Call the slot and return its data; see `zeno_fast.driver.BoundSlot`."""
        cdef bytes payload = self.encode(parameters)
        cdef int64_t deadline_ns = self.deadline_ns(timeout)
        if self._kept:
            return self._call_with_blocks(payload, deadline_ns, scope)
        return self._call(payload, deadline_ns, scope)

    cdef object _call(self, bytes payload, int64_t deadline_ns, scope):
        cdef Channel channel = self._route.choose()
        if channel is not None:
            try:
                return channel.exchange(self.template, payload, deadline_ns, scope)
            except NotSent:
                pass  # its process has ended: the driver starts another
            except PluginCrashed:
                if not self.template.idempotent:
                    raise
        return self._exchange(self.template, payload, deadline_ns, scope)

    cdef object _call_with_blocks(self, bytes payload, int64_t deadline_ns, scope):
        """Call the slot while others, or this call, refer to shared memory."""
        blocks = self.kept_for(payload)
        try:
            return self._call(payload, deadline_ns, scope)
        except (SlotError, PluginCrashed):
            raise
        except BaseException:
            self.hold_late(blocks)
            raise


cdef int64_t _nanoseconds(double seconds) except -1:
    if not seconds >= 0:
        raise ValueError(f"a timeout must be 0 or more seconds, not {seconds!r}")
    return <int64_t> (seconds * 1e9) if seconds < 1e9 else <int64_t> 1_000_000_000_000_000_000

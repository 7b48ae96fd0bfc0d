"""The calls of one sidecar, from the request that is written to the end; nothing here waits.

Each call gets an id and its request is queued for writing; what the guest prints is handed to it by
`_listener`.

All state is touched with the GIL held and without running foreign code in between.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from libc.stdint cimport INT64_MAX, int64_t, uint64_t
from libc.string cimport memcpy

from zeno_fast._call cimport THREAD, Call, RequestTemplate
from zeno_fast._messages cimport MAX_DIGITS, number_of, write_decimal
from zeno_fast._nesting cimport current_host_call
from zeno_fast._output cimport SMALL, Output
from zeno_fast._pending cimport PendingCalls
from zeno_fast._pipe cimport Pipe
from zeno_fast._posix cimport monotonic_ns
from zeno_fast._statistics cimport SlotStatistics

import secrets
from collections import deque

from zeno_fast._call import NotSent
from zeno_fast.errors import MessageTooLarge, PluginUnavailable, ProtocolError, SlotTimeout

cdef enum:
    MAX_GIVEN_UP = 4096  # calls whose late answers are told from answers to nothing
    TAIL = 64  # bytes of a request behind its parameters, at most

cdef const char *TIMEOUT = b',"timeout_ms":'
cdef uint64_t NO_LAST_CALL = <uint64_t> -1


cdef class Correlator:
    """Gives each call its id, queues its request, and ends it.

    Args:
        pipe: The process's pipes.
        owner: Is told of noise, host calls and the end; see `zeno_fast.sidecar.worker.Worker`. Its
            methods are called in the middle of reading and must neither block nor call a slot.
        plugin: The plugin's name, for messages.
        max_queue: Number of pending calls above which a call is refused.
        max_request: Size in bytes above which a request is refused.
    """

    def __init__(
        self, Pipe pipe, owner, str plugin, Py_ssize_t max_queue, Py_ssize_t max_request
    ):
        self._pipe = pipe
        self._owner = owner
        self._plugin = plugin
        # Random, so that nothing that a guest makes up for its host calls looks like one of ours.
        self._prefix = f"z{secrets.token_hex(4)}."
        self._id_head = b'{"type":"guest_call","id":"' + self._prefix.encode("ascii")
        self._pending = PendingCalls()
        self._queue = deque()
        self._given_up = {}
        self._finished = deque()
        self._output = Output(pipe)
        self._max_queue = max_queue
        self._max_request = max_request
        self._last_call = NO_LAST_CALL

    @property
    def owner(self):
        """Who is told of noise, host calls and the end."""
        return self._owner

    @property
    def lost(self):
        """Whether the channel takes no more calls."""
        return self._lost or self._ended

    @property
    def returns_ids(self):
        """Whether the guest has shown that it returns ids, and so is given many calls at once."""
        return self._multiplexed

    @property
    def spent(self):
        """Whether it has taken all the calls that `take_only` allowed."""
        return self.calls >= self._last_call

    @property
    def heard(self):
        """Number of times that something was read from the guest."""
        return self._heard

    @property
    def pending(self):
        """Number of calls that are not answered yet, sent or not."""
        return self.load()

    @property
    def in_flight(self):
        """Number of calls that the guest has and has not answered."""
        return self._pending.count + (self._alone != 0)

    @property
    def queued(self):
        """Number of calls that wait to be sent."""
        return len(self._queue)

    def take_only(self, count):
        """Take this many more calls and then raise NotSent; the owner's `spent` is told."""
        self._last_call = self.calls + <uint64_t> count

    def shed(self):
        """Let the calls that wait to be sent go to other processes; return how many there were."""
        cdef Py_ssize_t count = len(self._queue)
        while self._queue:
            self._finish(self._queue.pop(), None, NotSent())
        if count:
            self._pipe.wake()  # one of them may be that of the thread that reads
        return count

    @property
    def latest_deadline_ns(self):
        """When the last of these calls expires, on the clock of time.monotonic_ns; 0 for none.

        One that has the channel to itself has not told when, and counts as endless.
        """
        cdef Call call
        cdef int64_t latest = INT64_MAX if self._alone else 0
        for call in (*self._pending.calls(), *self._queue):
            latest = max(latest, call.deadline_ns)
        return latest

    def use_features(self, features):
        """Take note of what the guest said in `plugin_init` that it understands.

        Args:
            features: `cancel`: is told when a caller gives up. `deadline`: finds `timeout_ms` in
                its requests. Others are not looked at.
        """
        self._cancels = "cancel" in features
        self._tells_deadline = "deadline" in features

    def sole_call(self):
        """Return the one call that the guest has, or None where it has none or several."""
        return self._pending.sole()

    def pending_call(self, id):
        """Return the pending call with this id, or None."""
        if type(id) is not str:
            return None
        return self._pending.get(number_of(<str> id, self._prefix))

    # -- calls --------------------------------------------------------------------------------

    cdef Py_ssize_t load(self) noexcept:
        """Count the calls that are not answered yet."""
        return self._pending.count + len(self._queue) + (self._alone != 0)

    cdef bint full(self) noexcept:
        """Tell whether it takes no more calls: its process ends, or has done its share."""
        return self._lost or self._ended or self.calls >= self._last_call

    cdef Call new_call(
        self, RequestTemplate template, bytes payload, int64_t deadline_ns, object scope, int kind
    ):
        cdef Call call = Call.__new__(Call)
        call.template = template
        call.payload = payload
        call.deadline_ns = deadline_ns
        call.scope = scope
        call.kind = kind
        call.within = current_host_call()
        return call

    cdef int _admit(self, RequestTemplate template, bytes payload) except -1:
        """Count a call, or refuse it."""
        cdef str slot = template.slot
        if self.full():
            raise NotSent()
        if PyBytes_GET_SIZE(payload) > self._max_request:
            raise MessageTooLarge(
                f"the parameters of slot {slot!r} of plugin {self._plugin!r} are "
                f"{PyBytes_GET_SIZE(payload)} bytes of JSON, above the limit of "
                f"{self._max_request}; send less or raise sidecar.max_request in the manifest",
                nbytes=PyBytes_GET_SIZE(payload), limit=self._max_request,
                plugin=self._plugin, slot=slot)
        if self._pending.count + len(self._queue) >= self._max_queue:
            raise PluginUnavailable(
                f"plugin {self._plugin!r} has {self._max_queue} calls pending, as many as "
                f"sidecar.max_queue allows; slot {slot!r} was not called",
                plugin=self._plugin, slot=slot)
        if self._output.nbytes > MAX_UNREAD:
            raise PluginUnavailable(
                f"plugin {self._plugin!r} does not read its input: {self._output.nbytes} bytes "
                f"wait for it already; slot {slot!r} was not called",
                plugin=self._plugin, slot=slot)
        self.calls += 1
        return 0

    cdef int _tell_if_spent(self) except -1:
        """Tell the owner of the last call; it is pending by now, and so keeps the channel."""
        if self.calls == self._last_call:
            self._owner.spent()
        return 0

    cdef int _take_up(self, Call call, uint64_t number) except -1:
        """Let a call wait for the answer to the request with this number."""
        call.heard = self._heard
        call.number = number
        self._pending.add(call)
        self._newest = call
        return 0

    cdef int _put_call(self, Call call) except -1:
        """Give a call its id and queue its request for writing."""
        self._number += 1
        self._take_up(call, self._number)
        call.offset = self._output.written + self._output.nbytes
        self._stale = self._pipe.buffered()
        self._output.added(self._write_request(
            call.template, call.payload, call.number,
            call.deadline_ns - monotonic_ns() if self._tells_deadline else 0))
        return 0

    cdef Py_ssize_t _write_request(
        self, RequestTemplate template, bytes payload, uint64_t number, int64_t left_ns
    ) except -1:
        """Write a request, or its end, into the output's room; return how much that is.

        Parameters that are cheaper not to copy, and what stands before them, are queued by then.
        """
        cdef size_t nhead = PyBytes_GET_SIZE(self._id_head)
        cdef size_t nmiddle = PyBytes_GET_SIZE(template.middle)
        cdef size_t npayload = PyBytes_GET_SIZE(payload)
        cdef int64_t left = left_ns // 1000000
        cdef char *begin = self._output.room(
            nhead + MAX_DIGITS + nmiddle + TAIL + (npayload if npayload <= SMALL else 0))
        cdef char *end = begin
        memcpy(end, PyBytes_AS_STRING(self._id_head), nhead)
        end += nhead
        end += write_decimal(number, end)
        memcpy(end, PyBytes_AS_STRING(template.middle), nmiddle)
        end += nmiddle
        if npayload <= SMALL:
            memcpy(end, PyBytes_AS_STRING(payload), npayload)
            end += npayload
        else:
            self._output.added(end - begin)
            self._output.put_bytes(payload)
            begin = end = self._output.room(TAIL)
        if self._tells_deadline:
            memcpy(end, TIMEOUT, 14)
            end += 14
            end += write_decimal(<uint64_t> left if left > 0 else 0, end)
        end[0] = 125  # }
        end[1] = 10
        return end + 2 - begin

    cdef void _watch(self, Call call) noexcept:
        """Count a call that no thread waits for, so that somebody reads for it."""
        if call.kind != THREAD:
            call.watched = True
            self._watched += 1

    cdef void _unwatch(self, Call call) noexcept:
        if call.watched:
            call.watched = False
            self._watched -= 1

    cdef int _finish(self, Call call, object data, object error) except -1:
        """Hand a call its answer; whoever waits for it is woken."""
        cdef SlotStatistics statistics = call.template.statistics
        if statistics is not None:
            if error is None:
                statistics.record(monotonic_ns() - call.began_ns)
            elif type(error) is not NotSent:
                statistics.failed(error, monotonic_ns() - call.began_ns)
        if self._newest is call:
            self._newest = None  # or its data would be kept until the next call
        call.data = data
        call.error = error
        call.done = call.ready = True
        self._unwatch(call)
        call.wake()
        if call.kind != THREAD:
            self._finished.append(call)
            self._deliver()
        return 0

    cdef int _deliver(self) except -1:
        """Hand finished calls to who watches for them; one that an exception stops is not lost."""
        cdef Call call
        if self._delivering or not self._finished:
            return 0  # whoever does comes to those that were added, too
        self._delivering = True
        try:
            while self._finished:
                call = self._finished[0]
                if call.watcher is not None:  # its task may have gone just now
                    call.watcher.deliver(call)
                self._finished.popleft()
        finally:
            self._delivering = False
        return 0

    cdef int _keep_abandoned(self, Call call, int64_t deadline_ns) except -1:
        """Let a guest without ids answer a call that has failed, until a deadline."""
        cdef Call kept = self.new_call(call.template, b"", deadline_ns, None, THREAD)
        kept.began_ns = call.began_ns
        kept.abandoned = kept.ready = True
        self._take_up(kept, call.number)
        self._owner.abandoned(kept)
        return 0

    cdef int _abandon(self, Call call) except -1:
        """Drop a call without an answer; the guest is told if it wants to be.

        Where answers have no ids, its own is still awaited.
        """
        if call.number == 0:
            try:
                self._queue.remove(call)
            except ValueError:
                return 0
        elif self._multiplexed:
            if self._pending.take(call.number) is not None:
                if len(self._given_up) >= MAX_GIVEN_UP:
                    del self._given_up[next(iter(self._given_up))]
                self._given_up[call.number] = None
                self._put_cancel(call)
            call.done = True  # whoever watches its deadline need not keep it
            call.payload = b""
        elif not call.abandoned:
            self._owner.abandoned(call)
            self._put_cancel(call)
        call.abandoned = call.ready = True
        self._unwatch(call)
        call.wake()
        return 0

    cdef int _put_cancel(self, Call call) except -1:
        if self._cancels and not self._lost:
            self._output.put_bytes(
                b'{"type":"cancel","id":"%b%d"}\n' % (self._prefix.encode(), call.number))
        return 0

    cdef int _give_up_on_abandoned(self) except -1:
        """Have the guest replaced: its answer, should it come, could not be told from another's."""
        self._ended = True
        self.lose(self._never_answered)  # first: the end of the process would be another reason
        self._owner.hung()
        return 0

    def _never_answered(self, Call call):
        return SlotTimeout(
            f"slot {call.template.slot!r} of plugin {self._plugin!r} gave no answer in time",
            plugin=self._plugin, slot=call.template.slot)

    cdef int _break(self, str what, object kind=ProtocolError) except -1:
        """End the connection because of what the guest did, or did not."""
        def reason(call):
            return kind(
                f"plugin {self._plugin!r} {what}; its process is replaced",
                plugin=self._plugin, slot=call.slot)

        self._ended = True
        self.lose(reason)
        self._owner.hung()
        return 0

    def lose(self, reason):
        """End the channel: fail what was sent with `reason(call)`, what was not with NotSent.

        Args:
            reason: Makes the exception of one call that the guest had; called once for each.
        """
        cdef Call call
        self._lost = True
        if self._alone:
            self._reason = reason  # for whoever has the channel to itself
        sent = self._pending.calls()
        unsent = list(self._queue)
        self._pending = PendingCalls()
        self._newest = None
        self._queue.clear()
        self._output.clear()
        for call in sent:
            if call.abandoned:
                call.done = True
            else:
                self._finish(call, None, self._why(call, reason))
        for call in unsent:
            self._finish(call, None, NotSent())
        self._pipe.wake()

    cdef object _why(self, Call call, object reason):
        """Return what a pending call fails with when the channel ends.

        Of a request of which the pipe has taken nothing the guest has read nothing; while a thread
        is in the write nobody knows.
        """
        if not self._output.writing and call.offset >= self._output.written:
            return NotSent()
        return reason(call)

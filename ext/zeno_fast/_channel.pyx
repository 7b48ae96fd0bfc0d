"""Correlates calls and answers over one sidecar's pipes, for threads and event loops at once.

Leader and followers: a calling thread writes its request and then reads for everyone until its
own answer is there; another waiting caller takes over from it. Where no thread waits, watchers (an
event loop, or the manager's monitor thread) call `pump` when the pipe is readable.

All state is touched with the GIL held and without running foreign code in between; the GIL is
released for system calls and waits only; `_leading` and the output's `writing` say who is in one.
"""

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.exc cimport PyErr_CheckSignals
from libc.stdint cimport int64_t, uint64_t

from zeno_fast._call cimport FUTURE, LOOP, THREAD, Call, RequestTemplate
from zeno_fast._envelope cimport decode, take_data
from zeno_fast._messages cimport (
    MAX_DIGITS,
    answer_number,
    is_message,
    match_answer,
    number_of,
    split_damaged,
    write_decimal,
)
from zeno_fast._output cimport Output
from zeno_fast._pipe cimport (
    zb_forks,
    AGAIN,
    EXITED,
    FAILED,
    INTERRUPTED,
    READABLE,
    TOO_LONG,
    WRITABLE,
    Pipe,
    monotonic_ns,
)

import secrets
from collections import deque

from zeno_fast._call import NotSent
from zeno_fast.errors import PluginUnavailable, ProtocolError, SlotError, SlotTimeout, UsageError

cdef extern from "pythread.h":
    unsigned long PyThread_get_thread_ident() noexcept nogil

cdef int64_t UNHEARD_NS = 50_000_000  # a call that had less time says nothing about a silent guest

cdef enum:
    MAX_FILLS = 8
    MAX_DRAIN = 64
    MAX_UNHEARD = 3  # calls that time out in a row while the guest says nothing at all
    MAX_UNREAD = 64 * 1024 * 1024  # bytes that a guest may leave unread before it gets no more

PUMP_STOOD_DOWN = 1
PUMP_WANTS_WRITE = 2
PUMP_ENDED = 4


@cython.final
cdef class Channel:
    """Calls one sidecar process; safe from any thread and any event loop.

    Args:
        pipe: The process's pipes; the channel closes them.
        owner: Is told of noise, host calls and the end; see `zeno_fast.sidecar.worker.Worker`. Its
            methods are called in the middle of reading and must neither block nor call a slot.
        plugin: The plugin's name, for messages.
        max_queue: Number of pending calls above which a call is refused.
        strict: Whether a line that is no message ends the connection.
    """

    def __init__(self, Pipe pipe, owner, str plugin, Py_ssize_t max_queue, bint strict):
        self._pipe = pipe
        self._owner = owner
        self._plugin = plugin
        # Random, so that nothing that a guest makes up for its host calls looks like one of ours.
        self._prefix = f"z{secrets.token_hex(4)}."
        self._id_head = b'{"type":"guest_call","id":"' + self._prefix.encode("ascii")
        self._answer_head = b'{"type":"guest_response","id":"' + self._prefix.encode("ascii")
        self._pending = {}
        self._queue = deque()
        self._followers = {}
        self._output = Output(pipe)
        self._max_queue = max_queue
        self._watchers = ()
        self._forks = zb_forks()
        self._strict = strict

    # -- what callers see ---------------------------------------------------------------------

    @property
    def lost(self):
        """Whether the channel takes no more calls."""
        return self._lost or self._ended

    @property
    def returns_ids(self):
        """Whether the guest has shown that it returns ids, and so is given many calls at once."""
        return self._multiplexed

    @property
    def in_flight(self):
        """Number of calls that the guest has and has not answered."""
        return len(self._pending)

    @property
    def queued(self):
        """Number of calls that wait to be sent."""
        return len(self._queue)

    @property
    def read_fd(self):
        """The descriptor that watchers watch."""
        return self._pipe.read_fd

    @property
    def write_fd(self):
        """The descriptor that watchers watch while output is queued."""
        return self._pipe.write_fd

    @property
    def wants_write(self):
        """Whether output waits for the pipe to take it."""
        return self._output.full

    @property
    def broken(self):
        """Whether the guest has closed its stdin, and a `pump` has to end the channel."""
        return self._output.broken and not self._ended

    @property
    def led_by_thread(self):
        """Whether a calling thread reads at this moment."""
        return self._leading

    def call(self, RequestTemplate template, bytes payload, int64_t deadline_ns, object scope):
        """Call a slot from this thread and return its data.

        Args:
            template: The slot.
            payload: The parameters as JSON.
            deadline_ns: When to give up, on the clock of time.monotonic_ns.
            scope: What the guest's scope functions use, or None.

        Raises SlotError, SlotTimeout, PluginUnavailable, NotSent, or what `lose` was given.
        """
        return self.exchange(template, payload, deadline_ns, scope)

    cdef object exchange(
        self, RequestTemplate template, bytes payload, int64_t deadline_ns, object scope
    ):
        cdef Call call = self._new_call(template, payload, deadline_ns, scope, THREAD)
        self._start(call, True)
        if not call.done:
            try:
                self._await(call)
            except BaseException:
                if not call.done:
                    self._abandon(call)
                raise
        if call.error is not None:
            try:
                raise call.error
            finally:
                call.error = None  # or the traceback would keep this frame alive in a cycle
        return call.data

    def start(
        self, RequestTemplate template, bytes payload, int64_t deadline_ns, object scope,
        object future, object watcher,
    ):
        """Start a call whose answer goes to a future; return the Call.

        Args:
            future: An asyncio future where `watcher` watches its loop, else a concurrent one.
            watcher: Reads when no thread does; its `deliver` gets the finished call.
        """
        cdef Call call = self._new_call(
            template, payload, deadline_ns, scope, LOOP if watcher.is_loop else FUTURE)
        call.target = future
        call.began_ns = monotonic_ns()
        call.watcher = watcher
        self._start(call, True)
        return call

    def start_many(
        self, RequestTemplate template, list payloads, int64_t deadline_ns, object scope
    ):
        """Start a call for each payload with one write; `wait_for` takes each answer."""
        cdef list calls = []
        cdef Call call
        try:
            for payload in payloads:
                call = self._new_call(template, <bytes?> payload, deadline_ns, scope, THREAD)
                self._start(call, False)
                calls.append(call)
        except BaseException:
            for call in calls:
                self._abandon(call)
            raise
        finally:
            self.flush()
        return calls

    def wait_for(self, Call call):
        """Wait in this thread for a started call and return its data, or raise as `call` does."""
        try:
            if not call.done:
                self._turn_once()
            if not call.done:
                self._await(call)
        except BaseException:
            self.abandon(call)
            raise
        if call.error is not None:
            raise call.error
        return call.data

    def join(self, Call call, int64_t deadline_ns):
        """Read in this thread until a started call has its answer or the deadline passes."""
        cdef int64_t own = call.deadline_ns
        if call.done:
            return
        if deadline_ns < 0 or deadline_ns >= own:
            self._await(call)
        else:
            self._lead_until(call, deadline_ns)

    def abandon(self, Call call):
        """Forget a call: its caller has gone, its answer will be dropped."""
        if not call.done:
            self._abandon(call)

    def expire(self, Call call):
        """Fail a started call whose deadline has passed."""
        if not call.done:
            self._expire(call)

    def flush(self):
        """Write what is queued, as far as the pipe takes it."""
        self._output.flush()
        self._tell_leader()
        self._pass_on()

    def send(self, bytes line):
        """Queue one line that is no call, such as a host response."""
        if self._lost or self._output.nbytes > MAX_UNREAD:
            return  # it is gone, or asks and asks and never reads what it is answered
        self._output.put_bytes(line)
        self.flush()

    def sole_call(self):
        """Return the one call that the guest has, or None where it has none or several."""
        if len(self._pending) == 1:
            for call in self._pending.values():
                return call
        return None

    def pending_call(self, id):
        """Return the pending call with this id, or None."""
        if type(id) is not str:
            return None
        return self._pending.get(number_of(<str> id, self._prefix))

    def add_watcher(self, watcher):
        """Let a watcher be told, by its `arm_soon`, when it has to watch."""
        self._watchers = (*self._watchers, watcher)

    def remove_watcher(self, watcher):
        """Forget a watcher."""
        self._watchers = tuple([other for other in self._watchers if other is not watcher])

    def pump(self):
        """Read and write what is ready, without waiting; return a set of PUMP_ flags."""
        if self._closed or self._ended or self._forks != zb_forks():
            return PUMP_ENDED
        if self._leading:
            return PUMP_STOOD_DOWN
        self._turn_once()
        return (PUMP_WANTS_WRITE if self._output.full else 0) | (PUMP_ENDED if self._ended else 0)

    def finish_reading(self):
        """Deliver what a process that has ended left in its pipe; later calls raise NotSent."""
        if not self._leading and not self._ended and not self._closed:
            self._take_lead()
            try:
                self._drain()
            finally:
                self._leading = False
                self._pass_on()

    def retire(self):
        """End the channel if it is idle; return whether it was. Later calls raise NotSent."""
        if self._pending or self._queue or self._lost:
            return False
        self._lost = True
        return True

    def lose(self, reason):
        """End the channel: fail what was sent with `reason(call)`, what was not with NotSent.

        Args:
            reason: Makes the exception of one call that the guest had; called once for each.
        """
        cdef Call call
        self._lost = True
        sent = list(self._pending.values())
        unsent = list(self._queue)
        self._pending.clear()
        self._newest = None
        self._queue.clear()
        self._output.clear()
        for call in sent:
            if call.abandoned:
                call.done = True
            else:
                self._finish(call, None, reason(call))
        for call in unsent:
            self._finish(call, None, NotSent())
        self._pipe.wake()

    def close_write(self):
        """Let the sidecar see the end of its input; the channel must be lost."""
        if not self._output.writing:
            self._pipe.close_write()

    def close(self):
        """Close the descriptors once no thread is inside; return whether that was so."""
        if self._closed:
            return True
        if self._leading or self._output.writing:
            self._pipe.wake()
            return False
        self._closed = True
        self._pipe.close()
        return True

    # -- sending ------------------------------------------------------------------------------

    cdef Call _new_call(
        self, RequestTemplate template, bytes payload, int64_t deadline_ns, object scope, int kind
    ):
        cdef Call call = Call.__new__(Call)
        call.template = template
        call.payload = payload
        call.deadline_ns = deadline_ns
        call.scope = scope
        call.kind = kind
        return call

    cdef int _start(self, Call call, bint flush) except -1:
        """Admit a call and send it, or queue it behind the one that the guest has."""
        cdef bint clear = True
        if self._forks != zb_forks():
            raise UsageError(
                f"plugin {self._plugin!r} belongs to the process that this one was forked from; "
                "make a manager of its own in the child", plugin=self._plugin)
        if self._lost or self._ended:
            raise NotSent()
        if len(self._pending) + len(self._queue) >= self._max_queue:
            raise PluginUnavailable(
                f"plugin {self._plugin!r} has {self._max_queue} calls pending, as many as "
                f"sidecar.max_queue allows; slot {call.template.slot!r} was not called",
                plugin=self._plugin, slot=call.template.slot)
        if self._output.nbytes > MAX_UNREAD:
            raise PluginUnavailable(
                f"plugin {self._plugin!r} does not read its input: {self._output.nbytes} bytes "
                f"wait for it already; slot {call.template.slot!r} was not called",
                plugin=self._plugin, slot=call.template.slot)
        self.calls += 1
        if not self._multiplexed and not self._pending and not self._queue:
            # Whatever the guest has printed by now is no answer to what it has not been asked.
            clear = self._turn_once()
            if self._lost or self._ended:
                raise NotSent()
        if not self._multiplexed and call.deadline_ns <= monotonic_ns():
            return self._expire(call)  # sent, it would have to be waited for all the same
        if not self._multiplexed and (self._pending or self._queue or not clear):
            self._queue.append(call)
            return 0
        self._send_call(call, flush)
        return 0

    cdef int _send_call(self, Call call, bint flush) except -1:
        """Give a call its id and write it; what the pipe does not take is queued."""
        cdef char digits[MAX_DIGITS]
        cdef size_t count
        self._number += 1
        call.heard = self._heard
        call.number = self._number
        call.key = call.number
        self._pending[call.key] = call
        self._newest = call
        count = write_decimal(call.number, digits)
        self._output.put(PyBytes_AS_STRING(self._id_head), PyBytes_GET_SIZE(self._id_head))
        self._output.put(digits, count)
        self._output.put(
            PyBytes_AS_STRING(call.template.middle), PyBytes_GET_SIZE(call.template.middle))
        self._output.put_bytes(call.payload)
        self._output.put("}\n", 2)
        if flush:
            self._output.flush()
            self._tell_leader()
        return 0

    cdef int _tell_leader(self) except -1:
        """Wake a leader that does not watch for what the output has become."""
        if self._polling and (self._output.full or self._output.broken):
            self._pipe.wake()
        return 0

    # -- waiting ------------------------------------------------------------------------------

    cdef int _await(self, Call call) except -1:
        """Wait until the call is done, leading or following; expire it at its deadline."""
        self._lead_until(call, call.deadline_ns)
        if not call.done:
            self._expire(call)
        return 0

    cdef int _lead_until(self, Call call, int64_t deadline_ns) except -1:
        """Lead or follow until the call is done or the deadline passes."""
        while not call.done:
            if not self._leading:
                self._take_lead()
                try:
                    self._lead(call, deadline_ns)
                finally:
                    self._leading = False
                    self._pass_on()
                return 0
            if self._leader == PyThread_get_thread_ident():
                raise UsageError(
                    f"slot {call.template.slot!r} of plugin {self._plugin!r} was called from a "
                    "log handler or finaliser that ran while this thread read its answers",
                    plugin=self._plugin, slot=call.template.slot)
            if not self._follow(call, deadline_ns):
                return 0
        return 0

    cdef bint _follow(self, Call call, int64_t deadline_ns) except? False:
        """Sleep until the call is done or leadership is free; False when the deadline passed."""
        cdef int64_t now = monotonic_ns()
        cdef int64_t left = (deadline_ns - now) // 1000
        cdef int woken
        if not call.began_ns:
            call.began_ns = now
        if left <= 0:
            return False
        call.waiting = True
        self._followers[call] = None
        try:
            woken = call.sleep(left)
            if not woken:
                PyErr_CheckSignals()
        except BaseException:
            self._stop_following(call)
            self._pass_on()
            raise
        self._stop_following(call)
        if call.done:
            # It may have been woken to take over the lead, too.
            self._pass_on()
        return True

    cdef int _stop_following(self, Call call) except -1:
        call.waiting = False
        self._followers.pop(call, None)
        return 0

    cdef void _take_lead(self) noexcept:
        self._leading = True
        self._leader = PyThread_get_thread_ident()

    cdef int _lead(self, Call call, int64_t deadline_ns) except -1:
        """Read for everyone until this call is done or the deadline passes."""
        cdef int ready, interest
        cdef int64_t until
        if not self._ended and not self._output.full:
            self._polling = True
            self._read(deadline_ns)
        while not call.done:
            if self._output.broken and not self._ended:
                self._drain()  # its last words
            interest = 0 if self._ended else READABLE | EXITED
            if self._output.full and not self._ended:
                interest |= WRITABLE
            if not call.began_ns:
                call.began_ns = monotonic_ns()
            until = self._next_deadline(deadline_ns)
            self._polling = True
            with nogil:
                ready = self._pipe.wait(interest, until)
            self._polling = False
            if ready == AGAIN:
                PyErr_CheckSignals()
                continue
            if ready & WRITABLE:
                self._output.flush()
            if ready & READABLE:
                self._read()
            elif ready & EXITED:
                # The pipe may be held open by a grandchild: what is in it is all there will be.
                self._drain()
            if not call.done and monotonic_ns() >= until:
                if until < deadline_ns:
                    self._give_up_on_abandoned()
                else:
                    return 0
        return 0

    cdef int64_t _next_deadline(self, int64_t deadline_ns) except? -1:
        """Return the sooner of a deadline and that of an abandoned call that blocks the others."""
        cdef Call call
        if not self._multiplexed and len(self._pending) == 1:
            for call in self._pending.values():
                if call.abandoned and call.deadline_ns < deadline_ns:
                    return call.deadline_ns
        return deadline_ns

    cdef int _turn_once(self) except -1:
        """Lead for what is ready now; return whether nothing is left to read."""
        cdef bint drained
        if self._leading or self._ended or self._closed:
            return False
        self._take_lead()
        try:
            self._output.flush()
            drained = self._read()
            if self._output.broken:
                self._drain()
        finally:
            self._leading = False
            self._pass_on()
        return drained

    cdef int _pass_on(self) except -1:
        """Wake somebody to read and write, where anything is left to be read or written."""
        cdef Call call
        if self._leading:
            return 0
        for call in self._followers:
            call.wake()
            return 0
        if self._pending or self._output.full or self._output.broken:
            for watcher in self._watchers:
                watcher.arm_soon()
        return 0

    # -- ending calls -------------------------------------------------------------------------

    cdef int _finish(self, Call call, object data, object error) except -1:
        """Hand a call its answer; whoever waits for it is woken."""
        call.data = data
        call.error = error
        call.done = True
        call.wake()
        if call.kind != THREAD:
            call.watcher.deliver(call)
        return 0

    cdef int _abandon(self, Call call) except -1:
        """Drop a call without an answer. Where answers have no ids, its own is still awaited."""
        if call.number == 0:
            try:
                self._queue.remove(call)
            except ValueError:
                return 0
        else:
            if self._multiplexed:
                self._pending.pop(call.key, None)
            elif not call.abandoned:
                self._owner.abandoned(call)
            call.abandoned = True
        return 0

    cdef int _expire(self, Call call) except -1:
        """Fail a call whose deadline has passed."""
        cdef str slot = call.template.slot
        cdef bint sent = call.number != 0
        error = SlotTimeout(
            f"slot {slot!r} of plugin {self._plugin!r} "
            + ("gave no answer" if sent else "was not reached behind other calls")
            + f" within {(call.deadline_ns - call.began_ns) / 1e9:.2f} s; give it a longer "
            "timeout= or raise sidecar.timeout in the manifest",
            plugin=self._plugin, slot=slot)
        self._abandon(call)
        self._finish(call, None, error)
        if not sent:
            return 0
        if not self._multiplexed:
            return self._give_up_on_abandoned()
        # A guest that is only busy says something now and then; one that hangs is replaced.
        if call.heard != self._heard:
            self._unheard = 0
        elif call.began_ns and call.deadline_ns - call.began_ns >= UNHEARD_NS:
            self._unheard += 1
        if self._unheard >= MAX_UNHEARD:
            self._break(f"nothing during {MAX_UNHEARD} calls in a row that timed out")
        return 0

    cdef int _give_up_on_abandoned(self) except -1:
        """Have the guest replaced: its answer, should it come, could not be told from another's."""
        self._ended = True
        self._owner.hung()
        self.lose(self._never_answered)
        return 0

    def _never_answered(self, Call call):
        return SlotTimeout(
            f"slot {call.template.slot!r} of plugin {self._plugin!r} gave no answer in time",
            plugin=self._plugin, slot=call.template.slot)

    cdef int _end(self) except -1:
        """Note that nothing more will be read; the owner finds out why and calls `lose`."""
        if not self._ended:
            self._ended = True
            self._owner.ended()
        return 0

    # -- reading ------------------------------------------------------------------------------

    cdef int _read(self, int64_t soon_until=0) except -1:
        """Read what is there and deliver every message in it; return whether that was all.

        With a deadline, wait a moment for something to come, but not beyond it. A guest that never
        stops printing gets a few reads at a time, so that whoever reads can look at the clock.
        """
        cdef int _
        cdef bint drained = True
        cdef Py_ssize_t count
        cdef const char *line
        cdef size_t nbytes
        if self._pipe.read_fd < 0 or self._ended:
            return True
        for _ in range(MAX_FILLS):
            with nogil:
                count = self._pipe.fill_soon(soon_until) if soon_until else self._pipe.fill()
            soon_until = 0
            self._polling = False
            self._heard += count > 0
            while not self._ended and self._pipe.next_line(&line, &nbytes):
                self._take_line(line, nbytes)
            drained = count <= 0
            if count > 0:
                # A full pipe was emptied: there may be more. Otherwise the next wait will tell,
                # but where answers have no ids none may be left when the next call is sent.
                if not self._ended and (count >= 65536 or (
                        self._queue and not self._multiplexed and not self._pending)):
                    continue
            elif count == 0 or count == FAILED:
                self._pipe.take_rest(&line, &nbytes)
                if nbytes:
                    self._take_line(line, nbytes)
                self._end()
            elif count == INTERRUPTED:
                PyErr_CheckSignals()
            elif count != AGAIN:
                self._break(
                    f"a line of more than {self._pipe.max_line} bytes" if count == TOO_LONG
                    else "a line that did not fit into memory")
            break
        self._pipe.relax()
        if not self._ended and (drained or self._multiplexed):
            self._send_queued()
        return drained

    cdef int _drain(self) except -1:
        """Read all that a process which has ended can have left in its pipe, then end."""
        cdef int _
        for _ in range(MAX_DRAIN):  # more only comes from somebody else who has the pipe
            if self._read():
                break
        return self._end()

    cdef int _break(self, str what) except -1:
        """End the connection because of what the guest sent."""
        def reason(call):
            return ProtocolError(
                f"plugin {self._plugin!r} sent {what}; its process is replaced",
                plugin=self._plugin, slot=call.slot)

        self._ended = True
        self._owner.hung()
        self.lose(reason)
        return 0

    cdef int _take_line(self, const char *line, size_t nbytes) except -1:
        """Deliver the message in one line; what is none is noise."""
        cdef object message
        while nbytes and (line[nbytes - 1] == 13 or line[nbytes - 1] == 32):
            nbytes -= 1
        if not nbytes:
            return 0
        if line[0] == 123:  # {
            if self._take_plain_answer(line, nbytes):
                return 0
            try:
                message = decode(line, nbytes)
            except ValueError:
                message = None
            if message is None and self._take_invalid_answer(line, nbytes):
                return 0
            if message is not None:
                if is_message(<dict> message):
                    return self._take_message(<dict> message)
                return self._take_noise(PyBytes_FromStringAndSize(line, nbytes))
        for part in split_damaged(PyBytes_FromStringAndSize(line, nbytes)):
            if self._ended:
                break
            if type(part) is dict:
                self._take_message(<dict> part)
            else:
                self._take_noise(<bytes> part)
        return 0

    cdef bint _take_invalid_answer(self, const char *line, size_t nbytes) except -1:
        """Fail the call whose answer this is, though it is no JSON; False where it is none."""
        cdef uint64_t number = answer_number(line, nbytes, self._answer_head)
        cdef Call call = self._pending.pop(number, None) if number else None
        if call is None:
            return False
        self._take_noise(PyBytes_FromStringAndSize(line, nbytes if nbytes < 1024 else 1024))
        if not call.abandoned and not call.done:
            self._finish(call, None, ProtocolError(
                f"plugin {self._plugin!r} answered slot {call.template.slot!r} with what is no "
                "valid JSON; the log shows the line", plugin=self._plugin,
                slot=call.template.slot))
        return True

    cdef bint _take_plain_answer(self, const char *line, size_t nbytes) except -1:
        """Deliver an answer that is spelt as most guests spell it, decoding nothing but its data.

        Anything else, such as other members or another order, is left to the general way.
        """
        cdef const char *text
        cdef size_t length
        cdef uint64_t number = match_answer(line, nbytes, self._answer_head, &text, &length)
        cdef Call call
        if not number:
            return False
        call = self._newest
        if call is None or call.number != number or call.done:
            call = self._pending.get(number)
        if call is None or call.abandoned or call.done:
            return False
        try:
            data = decode(text, length)
        except ValueError:
            return False
        # Decoding runs no foreign code, so the call is still pending.
        del self._pending[call.key]
        self._multiplexed = True
        self._finish(call, data, None)
        return True

    cdef int _take_noise(self, bytes text) except -1:
        self.noise += 1
        self._owner.noise(text)
        if self._strict and not self._ended:
            self._break(f"{text[:80]!r} on stdout, which is no message, and sidecar.strict is set")
        return 0

    cdef int _take_message(self, dict message) except -1:
        if message.get("type") == "host_call":
            self._owner.host_call(message)
            return 0
        return self._take_response(message)

    cdef int _take_response(self, dict message) except -1:
        cdef Call call = None
        id = message.get("id")
        if type(id) is str and id:
            call = self._pending.pop(number_of(<str> id, self._prefix), None)
            if call is not None:
                self._multiplexed = True
        elif id is None or id == "":
            if not self._multiplexed:
                if self._pending:
                    _, call = self._pending.popitem()
            elif len(self._pending) == 1:
                # It may belong to this call or be a stray one. Nobody is given it, nobody hangs.
                _, call = self._pending.popitem()
                self.stray += 1
                if not call.abandoned:
                    self._finish(call, None, ProtocolError(
                        f"plugin {self._plugin!r} answered without an id after it had returned "
                        f"ids, so the answer cannot be told to be that of slot "
                        f"{call.template.slot!r}", plugin=self._plugin, slot=call.template.slot))
                return 0
        if call is None:
            self.stray += 1
            self._owner.stray(message)
            return 0
        if call.abandoned:
            return 0
        try:
            data = take_data(message, self._plugin, call.template.slot)
        except SlotError as error:
            self._finish(call, None, error.with_traceback(None))
        else:
            self._finish(call, data, None)
        return 0

    cdef int _send_queued(self) except -1:
        """Send what waited for the guest to be free, or to show that it returns ids."""
        cdef Call call
        while self._queue and (self._multiplexed or not self._pending):
            call = self._queue.popleft()
            if call.deadline_ns <= monotonic_ns():
                self._expire(call)
            else:
                self._send_call(call, False)
        self._output.flush()
        return 0

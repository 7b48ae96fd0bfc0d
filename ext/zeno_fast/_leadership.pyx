"""Who reads one sidecar's pipes, and when, so that threads and event loops share them.

Leader and followers: a calling thread writes its request and then reads for everyone until its
own answer is there; another waiting caller takes over from it. Where no thread waits, watchers (an
event loop, or the manager's monitor thread) call `pump` when the pipe is readable.

The GIL is released for system calls and waits only; `_leading` and the output's `writing` say who
is in one.
"""

from cpython.exc cimport PyErr_CheckSignals
from libc.stdint cimport int64_t

from zeno_fast._call cimport Call
from zeno_fast._listener cimport Listener
from zeno_fast._pipe cimport (
    zb_forks,
    AGAIN,
    EXITED,
    FAILED,
    INTERRUPTED,
    READABLE,
    WRITABLE,
    Pipe,
)
from zeno_fast._posix cimport monotonic_ns

from zeno_fast.errors import PluginCrashed, SlotTimeout, UsageError

cdef extern from "pythread.h":
    unsigned long PyThread_get_thread_ident() noexcept nogil

# A deadline that is acted upon this late says more about the host, which was stopped or has too
# much to do, than about the guest, which gets this long to go on after it.
cdef int64_t LATE_NS = 500_000_000

# A signal may come after Python was asked for those that came, and before the wait that it should
# interrupt: so long does its handler wait at most.
cdef int64_t SLICE_NS = 250_000_000

cdef enum:
    MAX_FILLS = 8
    MAX_DRAIN = 64

PUMP_STOOD_DOWN = 1
PUMP_WANTS_WRITE = 2
PUMP_ENDED = 4
PUMP_AGAIN = 8


cdef class Leadership(Listener):
    """Lets whoever waits for a call read for all; the arguments are those of `Listener`."""

    def __init__(
        self, Pipe pipe, owner, str plugin, Py_ssize_t max_queue, Py_ssize_t max_request,
        bint strict,
    ):
        super().__init__(pipe, owner, plugin, max_queue, max_request, strict)
        self._followers = {}
        self._watchers = ()
        self._forks = zb_forks()

    # -- what watchers see --------------------------------------------------------------------

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
        """Whether output waits for the pipe to take it; for shared memory the guest says so."""
        return self._output.full and not self._pipe.shared

    @property
    def broken(self):
        """Whether the guest has closed its stdin, and a `pump` has to end the channel."""
        return self._output.broken and not self._ended

    @property
    def turn_is_due(self):
        """Whether a `pump` has something to do that no descriptor shows."""
        return not self._ended and (self._output.broken or self._pipe.rest())

    @property
    def shared(self):
        """Whether messages go through shared memory."""
        return self._pipe.shared

    @property
    def resting(self):
        """Whether the guest writes to its stdout with what it puts into shared memory next."""
        return self._pipe.shared and self._pipe.ring.resting

    @property
    def led_by_thread(self):
        """Whether a calling thread reads at this moment."""
        return self._leading

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
        if self._pipe.shared:
            for _ in range(MAX_FILLS):
                if self._ended or not self._pipe.rest():
                    break
                self._turn_once()
            else:
                return PUMP_AGAIN
        return (PUMP_WANTS_WRITE if self.wants_write else 0) | (PUMP_ENDED if self._ended else 0)

    def finish_reading(self):
        """Deliver what a process that has ended left in its pipe; later calls raise NotSent."""
        if not self._leading and not self._ended and not self._closed:
            self._take_lead()
            try:
                self._drain()
            finally:
                self._leading = False
                self._pass_on()

    def expire(self, Call call):
        """Fail a started call whose deadline has passed; return False where it is not time yet.

        That is so where a thread reads and has not come to it: the answer may be there, from when
        the host was stopped. Ask again after a moment.
        """
        if call.done or self._forks != zb_forks():
            self._deliver()
            return True
        self._turn_once()
        if not call.done:
            if (self._leading and not call.postponed
                    and monotonic_ns() - call.deadline_ns > LATE_NS):
                call.postponed = True
                return False
            self._expire(call)
        return True

    cdef int write_out(self) except -1:
        """Write what is queued, as far as the pipe takes it, and see that the rest is."""
        if self._forks != zb_forks():
            return 0  # what is queued is the parent's to write
        self._output.flush()
        self._tell_leader()
        return self._pass_on()

    cdef int _send_queued(self) except -1:
        """Send what waited for the guest to be free, or to show that it returns ids."""
        cdef Call call
        while self._queue and (self._multiplexed or not self._pending.count):
            call = self._queue.popleft()
            if call.deadline_ns <= monotonic_ns():
                self._expire(call)
            else:
                self._put_call(call)
        self._output.flush()
        return 0

    cdef int _tell_leader(self) except -1:
        """Wake a leader that does not watch for what the output has become."""
        if self._polling and (self._output.full or self._output.broken):
            self._pipe.wake()
        return 0

    # -- waiting ------------------------------------------------------------------------------

    cdef int _await(self, Call call) except -1:
        """Wait until the call is ready, leading or following; expire it at its deadline."""
        self._lead_until(call, call.deadline_ns)
        if not call.ready and monotonic_ns() - call.deadline_ns > LATE_NS:
            self._lead_until(call, monotonic_ns() + LATE_NS // 10)  # what has come by now counts
        if not call.ready:
            self._expire(call)
        return 0

    cdef int _lead_until(self, Call call, int64_t deadline_ns) except -1:
        """Lead or follow until the call is ready or the deadline passes."""
        while not call.ready:
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
        """Sleep until the call is done, leadership is free or some time has passed.

        Returns False when it was past the deadline before.
        """
        cdef int64_t now = monotonic_ns()
        cdef int64_t left = (deadline_ns - now) // 1000
        cdef int woken
        if left <= 0:
            return False
        call.waiting = True
        self._followers[call] = None
        try:
            woken = call.sleep(min(left, SLICE_NS // 1000))
            if not woken:
                PyErr_CheckSignals()
        except BaseException:
            self._stop_following(call)
            self._pass_on()
            raise
        self._stop_following(call)
        if call.ready:
            # It may have been woken to take over the lead, too.
            self._pass_on()
        return True

    cdef int _stop_following(self, Call call) except -1:
        call.waiting = False
        self._followers.pop(call, None)
        return 0

    cdef int _stand_in(self) except -1:
        """Let those rest who watched for bytes that announce what is in shared memory."""
        if self._pipe.shared and self._pipe.ring.resting:
            self._pipe.ring.stir()
            for watcher in self._watchers:
                watcher.stand_down()
        return 0

    cdef void _take_lead(self) noexcept:
        self._leading = True
        self._leader = PyThread_get_thread_ident()

    cdef int _lead(self, Call call, int64_t deadline_ns) except -1:
        """Read for everyone until this call is ready or the deadline passes."""
        cdef int ready, interest
        cdef int64_t until
        cdef Call blocking
        self._stand_in()
        if not self._ended and not self._output.full:
            self._polling = True
            self._read(deadline_ns - monotonic_ns())
        while not call.ready:
            if self._output.broken and not self._ended:
                self._drain()  # its last words
            interest = 0 if self._ended else READABLE | EXITED
            if self._output.full and not self._ended:
                interest |= WRITABLE
            # Its own thread may be elsewhere, with an iterator that is not read.
            blocking = self._blocking_call()
            until = deadline_ns
            if blocking is not None and blocking.deadline_ns < deadline_ns:
                until = blocking.deadline_ns
            PyErr_CheckSignals()  # one that came while nothing was waited for
            if self._output.full and self._pipe.shared:
                self._output.flush()  # before this one, somebody else may have been told of room
            self._polling = True
            with nogil:
                ready = self._pipe.wait(interest, min(until, monotonic_ns() + SLICE_NS))
            self._polling = False
            if ready == AGAIN:
                PyErr_CheckSignals()
                ready = 0
            if ready & WRITABLE:
                self._output.flush()
            if ready & READABLE:
                self._read()
            elif ready & EXITED:
                # The pipe may be held open by a grandchild: what is in it is all there will be.
                self._drain()
            if not call.ready and monotonic_ns() >= until:
                if until == deadline_ns:
                    return 0
                self._expire(blocking)
        return 0

    cdef Call _blocking_call(self):
        """Return the call that the others wait behind, where answers have no ids; or None."""
        return None if self._multiplexed else self._pending.sole()

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
        # What threads wait for between two calls, as those of `map` do, they read themselves.
        if self._watched or self._output.full or self._output.broken:
            for watcher in self._watchers:
                watcher.arm_soon()
        return 0

    # -- ending calls -------------------------------------------------------------------------

    cdef int _expire(self, Call call) except -1:
        """Fail a call whose deadline has passed."""
        cdef str slot = call.template.slot
        cdef bint sent = call.number != 0
        cdef bint late = monotonic_ns() - call.deadline_ns > LATE_NS
        error = SlotTimeout(
            f"slot {slot!r} of plugin {self._plugin!r} "
            + ("gave no answer" if sent else "was not reached behind other calls")
            + f" within {max(0, call.deadline_ns - call.began_ns) / 1e9:.2f} s; give it a longer "
            "timeout= or raise sidecar.timeout in the manifest",
            plugin=self._plugin, slot=slot)
        if sent and not self._multiplexed:
            self._pending.take(call.number)
            if late and not call.abandoned:
                self._keep_abandoned(call, monotonic_ns() + LATE_NS)
            else:
                self._give_up_on_abandoned()
        else:
            self._abandon(call)
        self._finish(call, None, error)
        if sent and self._multiplexed and not self._lost:
            if not call.ping or late:
                self._owner.overran()
            elif call.heard == self._heard:
                self._break("said nothing at all after a call had timed out", PluginCrashed)
        if self._output.nbytes:
            self.write_out()
        return 0

    cdef int _end(self) except -1:
        """Note that nothing more will be read; the owner finds out why and calls `lose`."""
        if not self._ended:
            self._ended = True
            self._owner.ended()
        return 0

    # -- reading ------------------------------------------------------------------------------

    cdef int _read(self, int64_t soon_ns=0) except -1:
        """Read what is there and deliver every message in it; return whether that was all.

        Given how much time is left, wait a moment of it for something to come. A guest that never
        stops printing gets a few reads at a time, so that whoever reads can look at the clock.
        """
        cdef int _, ready
        cdef bint drained = True
        cdef Py_ssize_t count
        if self._pipe.read_fd < 0 or self._ended:
            return True
        self._deliver()
        if self._pipe.buffered():
            self._take_lines()  # an exception may have left some
        for _ in range(MAX_FILLS):
            with nogil:
                count = self._pipe.fill_soon(soon_ns) if soon_ns else self._pipe.fill()
            soon_ns = 0
            self._polling = False
            drained = count <= 0
            if count > 0:
                self._heard += 1
                self._take_lines()
                # A full pipe was emptied: there may be more. Otherwise the next wait will tell,
                # but where answers have no ids none may be left when the next call is sent.
                if not self._ended and (count >= 65536 or (
                        self._queue and not self._multiplexed and not self._pending.count)):
                    continue
            elif count == 0 or count == FAILED:
                self._take_rest()
                self._end()
            elif count == INTERRUPTED:
                PyErr_CheckSignals()
            elif count != AGAIN:
                self._break("sent a line that did not fit into memory")
            break
        else:
            # What was taken last may be all there is, and then no wait would end for it.
            if (self._queue and not self._multiplexed and not self._pending.count
                    and not self._ended):
                with nogil:
                    ready = self._pipe.wait(READABLE, 0)
                drained = ready == 0
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

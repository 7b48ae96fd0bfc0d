"""Calls one sidecar process: alone, one of many, as a future, as a stream, or one after another."""

cimport cython
from cpython.bytes cimport PyBytes_GET_SIZE
from cpython.exc cimport PyErr_CheckSignals
from libc.stdint cimport int64_t, uint64_t

from zeno_fast._call cimport FUTURE, LOOP, THREAD, Call, RequestTemplate
from zeno_fast._correlator cimport MAX_UNREAD
from zeno_fast._envelope cimport decode
from zeno_fast._leadership cimport Leadership
from zeno_fast._lines cimport CORRUPT, LINE, LONG_LINE, NO_LINE
from zeno_fast._messages cimport match_answer
from zeno_fast._output cimport SMALL
from zeno_fast._pipe cimport AGAIN, FAILED, INTERRUPTED, zb_forks
from zeno_fast._posix cimport monotonic_ns

from zeno_fast._call import NotSent
from zeno_fast.errors import PluginUnavailable, UsageError


@cython.final
cdef class Channel(Leadership):
    """Calls one sidecar process; safe from any thread and any event loop.

    The arguments are those of `zeno_fast._correlator.Correlator`; the channel closes the pipe.
    """

    # -- what callers see ---------------------------------------------------------------------

    def call(self, RequestTemplate template, bytes payload, int64_t deadline_ns, object scope):
        """Call a slot from this thread and return its data.

        Args:
            template: The slot.
            payload: The parameters as JSON.
            deadline_ns: When to give up, on the clock of time.monotonic_ns.
            scope: What the guest's scope functions use, or None.

        Raises SlotError, SlotTimeout, MessageTooLarge, PluginUnavailable, NotSent, or what `lose`
        was given.
        """
        return self.exchange(template, payload, deadline_ns, scope)

    cdef object exchange(
        self, RequestTemplate template, bytes payload, int64_t deadline_ns, object scope
    ):
        cdef Call call
        if self._undisturbed() and PyBytes_GET_SIZE(payload) <= SMALL:
            return self._exchange_alone(template, payload, deadline_ns, scope, None)
        call = self.new_call(template, payload, deadline_ns, scope, THREAD)
        self._start(call, True)
        return self._wait_and_take(call)

    def ask_soon(
        self, RequestTemplate template, bytes payload, int64_t deadline_ns, object scope, watcher
    ):
        """Call a slot from an event loop and wait a moment for its answer.

        Args:
            watcher: Of the loop; see `start`.

        Returns the data, or the pending Call, whose `future` will have it. Raises as `call` does.
        """
        if self._undisturbed() and PyBytes_GET_SIZE(payload) <= SMALL:
            return self._exchange_alone(template, payload, deadline_ns, scope, watcher)
        return self.start(template, payload, deadline_ns, scope, watcher.make_future(), watcher)

    def start(
        self, RequestTemplate template, bytes payload, int64_t deadline_ns, object scope,
        object future, object watcher,
    ):
        """Start a call whose answer goes to a future; return the Call.

        Args:
            future: An asyncio future where `watcher` watches its loop, else a concurrent one.
            watcher: Reads when no thread does; its `deliver` gets the finished call.
        """
        cdef Call call = self.new_call(
            template, payload, deadline_ns, scope, LOOP if watcher.is_loop else FUTURE)
        call.target = future
        call.watcher = watcher
        self._start(call, True)
        return call

    def start_ping(
        self, RequestTemplate template, bytes payload, int64_t deadline_ns, future, watcher
    ):
        """Start a call as `start` does, after which a guest that has said nothing is replaced."""
        cdef Call call = self.new_call(template, payload, deadline_ns, None, FUTURE)
        call.target = future
        call.began_ns = monotonic_ns()
        call.watcher = watcher
        call.ping = True
        if self._lost or self._ended:
            raise NotSent()
        self._watch(call)
        self._put_call(call)  # however long the queue is: that may be why
        self.write_out()
        return call

    def start_stream(
        self, RequestTemplate template, bytes payload, int64_t deadline_ns, object scope, sink,
        watcher,
    ):
        """Start a call whose chunks go to `sink.feed(data, nbytes)`; return the Call.

        `feed` returns whether there was room. The call is `ready` after a chunk, until `unready`.

        Args:
            watcher: Of an event loop, whose `deliver` and `deliver_chunk` get what comes; or None,
                and `wait_ready` waits for it.
        """
        cdef Call call = self.new_call(
            template, payload, deadline_ns, scope, THREAD if watcher is None else LOOP)
        call.sink = sink
        call.watcher = watcher
        self._start(call, True)
        return call

    def wait_ready(self, Call call):
        """Wait in this thread until a started call is ready, or its deadline has passed."""
        if not call.ready:
            self._await(call)

    cdef int begin(self, Call call) except -1:
        """Start a call of this thread; `write_out` sends it, `take_answer` waits for the answer."""
        return self._start(call, False)

    cdef object take_answer(self, Call call):
        """Wait for a call that was begun and return its data, or raise as `call` does."""
        if not call.done:
            self._turn_once()
        return self._wait_and_take(call)

    cdef object _wait_and_take(self, Call call):
        if not call.done:
            try:
                self._await(call)
            except BaseException:
                self.abandon(call)
                raise
        if call.error is not None:
            try:
                raise call.error
            finally:
                call.error = None  # or the traceback would keep this frame alive in a cycle
        return call.data

    def join(self, Call call, int64_t deadline_ns):
        """Read in this thread until a started call has its answer or the deadline passes."""
        cdef int64_t own = call.deadline_ns
        if call.ready:
            return
        if deadline_ns < 0 or deadline_ns >= own:
            self._await(call)
        else:
            self._lead_until(call, deadline_ns)

    def abandon(self, Call call):
        """Forget a call: its caller has gone, its answer will be dropped."""
        if not call.done and not call.abandoned and self._forks == zb_forks():
            self._abandon(call)
            if self._polling and call.kind != THREAD:
                self._pipe.wake()  # the leader may be a thread that waits for this very call
            self.write_out()

    def send(self, bytes line):
        """Queue one line that is no call, such as a host response; return whether it was taken."""
        if self._lost or self._output.nbytes > MAX_UNREAD or self._forks != zb_forks():
            return False  # it is gone, or asks and asks and never reads what it is answered
        self._output.put_bytes(line)
        self.write_out()
        return True

    def use_ring(self, segment):
        """Let messages go through shared memory from now on.

        Args:
            segment: The guest's, a `zeno_fast._shm.Segment`; it has said that it reads its ring,
                and has been sent nothing else since.
        """
        self._pipe.use_ring(segment)

    def retire(self):
        """End the channel if it is idle; return whether it was. Later calls raise NotSent."""
        if self._pending.count or self._queue or self._alone or self._lost:
            return False
        self._lost = True
        return True

    def close_write(self):
        """Let the sidecar see the end of its input; the channel must be lost."""
        if not self._output.writing:
            self._pipe.close_write()

    def close(self):
        """Close the descriptors once no thread is inside; return whether that was so."""
        if self._closed:
            return True
        if (self._leading or self._output.writing) and self._forks == zb_forks():
            self._pipe.wake()
            return False
        self._closed = True
        self._pipe.close()
        return True

    # -- one call, and nothing else -----------------------------------------------------------

    cdef bint _undisturbed(self) noexcept:
        """Tell whether a call would have the channel to itself, from a guest that returns ids."""
        return (
            self._multiplexed and not self._leading and not self._pending.count
            and not self._lost and not self._ended
            and not self._output.nbytes and not self._output.writing
            and self._forks == zb_forks() and not self._pipe.buffered()
        )

    cdef object _exchange_alone(
        self, RequestTemplate template, bytes payload, int64_t deadline_ns, object scope,
        object watcher,
    ):
        """Call a slot while nobody else does, without the bookkeeping that many calls need.

        Half of what a small call costs beside its system calls is saved so. Whatever comes but one
        plain answer to it in one piece, it becomes a call as all others are. With a watcher, only
        a moment is waited for the answer.
        """
        cdef const char *line
        cdef const char *text
        cdef size_t nbytes, length
        cdef Py_ssize_t count = AGAIN
        cdef int taken = NO_LINE
        cdef uint64_t number, offset
        cdef int64_t began_ns = monotonic_ns()
        cdef int64_t left_ns = deadline_ns - began_ns
        cdef Call call
        self._admit(template, payload)
        self._number += 1
        number = self._number
        nbytes = self._write_request(template, payload, number, left_ns)
        offset = self._output.written
        self._output.added(nbytes)  # before any Python code may let others write theirs
        self._alone = number
        self._take_lead()
        self._stand_in()
        self._tell_if_spent()
        self._output.flush()
        if not self._output.full and not self._output.broken:
            self._polling = True
            with nogil:
                count = self._pipe.fill_soon(left_ns) if watcher is None else self._pipe.spin()
            self._polling = False
            if self._output.full:  # what was read may have said that there is room
                self._output.flush()
        if count > 0:
            self._heard += 1
            taken = self._pipe.next_line(&line, &nbytes)
            if taken == LINE and number == match_answer(
                    line, nbytes, self._answer_head, &text, &length):
                try:
                    data = decode(text, length)
                except ValueError:
                    pass  # not so plain after all
                else:
                    if template.statistics is not None:
                        template.statistics.record(monotonic_ns() - began_ns)
                    self._answered = True
                    self._alone = 0
                    try:
                        if self._pipe.buffered():
                            self._take_lines()
                    finally:
                        self._leading = False
                        if self._followers or self._watched or self._output.nbytes:
                            self._pass_on()
                    return data
        call = self.new_call(
            template, payload, deadline_ns, scope, THREAD if watcher is None else LOOP)
        if watcher is not None:
            call.target = watcher.make_future()
            call.watcher = watcher
        call.began_ns = began_ns
        self._take_up(call, number)
        call.offset = offset
        self._alone = 0
        self._watch(call)
        try:
            if taken == LINE:
                self._take_line(line, nbytes)
            elif taken == LONG_LINE:
                self._take_long_line(line, nbytes)
            elif taken == CORRUPT:
                self._take_corrupt()
            if count > 0:
                self._take_lines()
            elif count == 0 or count == FAILED:
                self._take_rest()
                self._end()
            elif count == INTERRUPTED:
                PyErr_CheckSignals()
            if self._reason is not None and not call.done:
                # The channel was lost while it had this call and did not know of it.
                self._pending.take(call.number)
                self._finish(call, None, self._why(call, self._reason))
            if watcher is None and not call.done:
                self._lead(call, deadline_ns)
        except BaseException:
            self.abandon(call)
            raise
        finally:
            self._leading = False
            if self._followers or self._watched > call.watched or self._output.nbytes:
                self._pass_on()
        return self._wait_and_take(call) if watcher is None else call

    # -- sending ------------------------------------------------------------------------------

    cdef int _refuse_fork(self) except -1:
        raise UsageError(
            f"plugin {self._plugin!r} belongs to the process that this one was forked from; "
            "make a manager of its own in the child", plugin=self._plugin)

    cdef int _start(self, Call call, bint flush) except -1:
        """Admit a call and send it, or queue it behind the one that the guest has."""
        cdef bint clear = True
        if not call.began_ns:
            call.began_ns = monotonic_ns()
        if self._forks != zb_forks():
            self._refuse_fork()
        self._admit(call.template, call.payload)
        if not self._multiplexed and not self._pending.count and not self._queue:
            # Whatever the guest has printed by now is no answer to what it has not been asked.
            clear = self._turn_once()
            if self._lost or self._ended:
                raise NotSent()
        if not self._multiplexed and call.deadline_ns <= monotonic_ns():
            return self._expire(call)  # sent, it would have to be waited for all the same
        if not self._multiplexed and (self._pending.count or self._queue or not clear):
            if call.within is not None and call.within.holds_up(self):
                raise PluginUnavailable(
                    f"slot {call.template.slot!r} of plugin {self._plugin!r} was called by a host "
                    "function that this very plugin waits for, and it takes one call at a time",
                    plugin=self._plugin, slot=call.template.slot)
            self._watch(call)
            self._queue.append(call)
            self._tell_if_spent()
            return 0
        self._watch(call)
        self._put_call(call)
        self._tell_if_spent()
        if flush:
            self._output.flush()
            self._tell_leader()
        return 0

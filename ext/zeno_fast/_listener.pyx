"""To whom each line of a sidecar belongs: an answer, a chunk, a host call, or noise."""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.stdint cimport int64_t, uint64_t

from zeno_fast._bytes cimport release_blocks, take_bytes
from zeno_fast._call cimport LOOP, Call
from zeno_fast._correlator cimport Correlator
from zeno_fast._envelope cimport decode, take_data
from zeno_fast._lines cimport CORRUPT, LINE, NO_LINE
from zeno_fast._messages cimport (
    SHOWN,
    first_number,
    framed_nbytes,
    host_call_id,
    is_message,
    kind_of,
    last_number,
    match_answer,
    number_of,
    split_damaged,
)
from zeno_fast._pipe cimport Pipe

from zeno_fast.errors import MessageTooLarge, ProtocolError, SlotError


cdef class Listener(Correlator):
    """Hands what a guest prints to the calls, or to the owner, that it is for.

    Args:
        strict: Whether a line that is no message ends the connection.

    The others are those of `Correlator`.
    """

    def __init__(
        self, Pipe pipe, owner, str plugin, Py_ssize_t max_queue, Py_ssize_t max_request,
        bint strict,
    ):
        super().__init__(pipe, owner, plugin, max_queue, max_request)
        self._answer_head = b'{"type":"guest_response","id":"' + self._prefix.encode("ascii")
        self._strict = strict
        self._framed = self._header = -1

    cdef int _take_lines(self) except -1:
        """Deliver every whole line that was read."""
        cdef const char *line
        cdef size_t nbytes
        cdef int found
        cdef object interrupt = None
        while not self._ended:
            found = self._pipe.next_line(&line, &nbytes)
            if found == NO_LINE:
                break
            if found == CORRUPT:
                self._take_corrupt()
                break
            try:
                if found == LINE:
                    self._take_line(line, nbytes)
                else:
                    self._take_long_line(line, nbytes)
            except BaseException as error:  # those behind it are somebody else's
                interrupt = error
        if interrupt is not None:
            raise interrupt
        if self._framed >= 0 and not self._ended and self._pipe.buffered() >= self._framed:
            # As long as its header said, and no line end: a guest that writes lines has one there.
            self._break(
                "frames its messages with Content-Length headers, as language servers do, where "
                "one JSON object a line is expected")
        return 0

    cdef int _take_corrupt(self) except -1:
        """Give up shared memory that says what cannot be."""
        return self._break("has written to the shared memory what its protocol does not allow")

    cdef int _take_rest(self) except -1:
        """Deliver what came after the last line end, at the end of input."""
        cdef const char *line
        cdef size_t nbytes
        cdef int found = self._pipe.take_rest(&line, &nbytes)
        if found == LINE:
            return self._take_line(line, nbytes)
        if found != NO_LINE:
            return self._take_long_line(line, nbytes)
        return 0

    cdef int _take_line(self, const char *line, size_t nbytes) except -1:
        """Deliver the message in one line; what is none is noise."""
        cdef object message
        cdef Py_ssize_t stale = 0 if self._multiplexed else self._stale
        cdef int64_t header = self._header
        self._framed = self._header = -1
        self._stale = 0
        while nbytes and (line[nbytes - 1] == 13 or line[nbytes - 1] == 32):
            nbytes -= 1
        if not nbytes:
            self._framed = header
            return 0
        if line[0] == 123 and not stale:  # {
            if self._take_plain_answer(line, nbytes):
                return 0
            try:
                message = decode(line, nbytes)
            except ValueError:
                message = None
            if message is not None:
                if is_message(<dict> message):
                    return self._take_message(<dict> message, nbytes)
                return self._take_noise(PyBytes_FromStringAndSize(line, nbytes))
        return self._take_parts(PyBytes_FromStringAndSize(line, nbytes), stale)

    cdef int _take_parts(self, bytes line, Py_ssize_t stale) except -1:
        """Deliver the messages in a line that is not, or not only, one.

        Args:
            stale: How much of it was there before the pending call was sent, where answers have no
                ids: what begins in there is no answer to it.
        """
        cdef Py_ssize_t begin
        cdef list parts = split_damaged(line)
        if parts and type(parts[0][1]) is not dict and self._take_invalid_answer(
                PyBytes_AS_STRING(line), PyBytes_GET_SIZE(line)):
            del parts[0]  # the begin of the line: it may go on with whole messages
        for begin, part in parts:
            if self._ended:
                break
            if type(part) is not dict:
                self._take_noise(<bytes> part)
            elif begin < stale and not part.get("id") and part.get("type") != "host_call":
                self._drop(0, <dict> part)
            else:
                self._take_message(<dict> part, PyBytes_GET_SIZE(line))
        return 0

    cdef int _take_long_line(self, const char *line, size_t nbytes) except -1:
        """Deal with a line above the limit, of which only the begin was kept."""
        cdef Py_ssize_t size = self._pipe.long_nbytes
        cdef bytes begin = PyBytes_FromStringAndSize(line, nbytes)
        cdef bytes end
        cdef uint64_t number = first_number(line, nbytes, self._prefix)
        cdef Call call = None
        self._framed = self._header = -1
        if not number and line[0] == 123:  # {
            number = last_number(self._pipe.long_end(), self._prefix)
        end = self._pipe.long_end()
        kind = kind_of(begin, end) if begin.lstrip()[:1] == b"{" else None
        if kind == "host_call":
            self._owner.refuse_host_call(
                host_call_id(begin, end),
                f"the host call is {size} bytes, above the limit of {self._pipe.max_line}")
            return 0
        if number:
            call = self._pending.take(number)
            self._multiplexed = self._multiplexed or call is not None
            if call is None:
                return self._drop(number, {})
        elif not self._multiplexed and self._pending.count == 1 and line[0] == 123 and (
                kind == "guest_chunk" or kind is None and b'"success"' in begin + end):
            # Of a stream a part is missing now; an answer it is if it looks like one.
            call = self._pending.take_sole()
            if kind == "guest_chunk":
                if call.sink is None:
                    self._pending.add(call)
                    return 0
                self._keep_abandoned(call, call.deadline_ns)
        if call is None:
            return self._take_noise(
                begin[:SHOWN] + b" ... (%d bytes, above the limit of %d)"
                % (size, self._pipe.max_line))
        self._answered = True
        if call.abandoned:
            call.done = True
        elif not call.done:
            self._finish(call, None, MessageTooLarge(
                f"the answer to slot {call.template.slot!r} of plugin {self._plugin!r} is {size} "
                f"bytes, above the limit of {self._pipe.max_line}; ask for less or raise "
                "sidecar.max_response in the manifest", nbytes=size,
                limit=self._pipe.max_line, plugin=self._plugin, slot=call.template.slot))
        return 0

    cdef bint _take_invalid_answer(self, const char *line, size_t nbytes) except -1:
        """Fail the call whose answer is begun here, but is no JSON; False where there is none."""
        cdef uint64_t number = first_number(line, nbytes, self._prefix)
        cdef Call call = self._pending.take(number) if number else None
        if call is None:
            return False
        self._take_noise(PyBytes_FromStringAndSize(line, nbytes if nbytes < SHOWN else SHOWN))
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
        self._multiplexed = self._answered = True
        # The collector may have run meanwhile, and with it the end of whoever made the call.
        if self._pending.take(number) is not None:
            self._finish(call, data, None)
        return True

    cdef int _take_noise(self, bytes text) except -1:
        self.noise += 1
        if not self._answered:
            self._header = framed_nbytes(text)
        self._owner.noise(text)
        if self._strict and not self._ended:
            self._break(
                f"printed {text[:80]!r} to stdout, which is no message, and sidecar.strict is set")
        return 0

    cdef int _take_message(self, dict message, size_t nbytes) except -1:
        kind = message.get("type")
        if kind == "host_call":
            self._owner.host_call(message)
            return 0
        if kind == "guest_chunk":
            return self._take_chunk(message, nbytes)
        return self._take_response(message)

    cdef int _take_chunk(self, dict message, size_t nbytes) except -1:
        """Hand a partial result to the stream that it is for; nobody else wants any."""
        cdef Call call = None
        id = message.get("id")
        if type(id) is str and id:
            call = self._pending.get(number_of(<str> id, self._prefix))
        elif (id is None or id == "") and not self._multiplexed:
            call = self.sole_call()
        if call is None or call.abandoned or call.sink is None:
            release_blocks(message, self._pipe.segment())
            return 0
        try:
            data = take_bytes(message, self._plugin, call.template.slot, self._pipe.segment())
        except ProtocolError as problem:
            self._pending.take(call.number)
            self._finish(call, None, problem.with_traceback(None))
            return 0
        if call.sink.feed(data, nbytes):
            call.ready = True
            call.wake()
            if call.kind == LOOP:
                call.watcher.deliver_chunk(call.sink)
            return 0
        error = MessageTooLarge(
            f"slot {call.template.slot!r} of plugin {self._plugin!r} has sent more than its caller "
            "takes: what waits to be read is above the limit of sidecar.max_response, "
            f"{self._pipe.max_line} bytes", limit=self._pipe.max_line,
            plugin=self._plugin, slot=call.template.slot)
        if self._multiplexed:
            self._abandon(call)
        else:
            self._pending.take(call.number)
            self._put_cancel(call)
            self._keep_abandoned(call, call.deadline_ns)
        self._finish(call, None, error)
        return 0

    cdef int _take_response(self, dict message) except -1:
        cdef Call call = None
        cdef uint64_t number
        id = message.get("id")
        if type(id) is str and id:
            number = number_of(<str> id, self._prefix)
            call = self._pending.take(number)
            if call is None:
                return self._drop(number, message)
            self._multiplexed = True
        elif id is None or id == "":
            if not self._multiplexed:
                call = self._pending.take_sole()
            elif self._pending.count == 1:
                # It may belong to this call or be a stray one. Nobody is given it, nobody hangs.
                call = self._pending.take_sole()
                self.stray += 1
                if not call.abandoned:
                    self._finish(call, None, ProtocolError(
                        f"plugin {self._plugin!r} answered without an id after it had returned "
                        f"ids, so the answer cannot be told to be that of slot "
                        f"{call.template.slot!r}", plugin=self._plugin, slot=call.template.slot))
                return 0
        if call is None:
            return self._drop(0, message)
        self._answered = True
        if call.abandoned:
            call.done = True  # nothing of it is due any more
            self.late += 1
            release_blocks(message, self._pipe.segment())
            return 0
        try:
            data = take_data(message, self._plugin, call.template.slot, self._pipe.segment())
        except (SlotError, ProtocolError) as error:
            self._finish(call, None, error.with_traceback(None))
        else:
            self._finish(call, data, None)
        return 0

    cdef int _drop(self, object number, dict message) except -1:
        """Count an answer that belongs to no pending call."""
        release_blocks(message, self._pipe.segment())
        if self._given_up.pop(number, self) is not self:
            self.late += 1
        else:
            self.stray += 1
            self._owner.stray(message)
        return 0

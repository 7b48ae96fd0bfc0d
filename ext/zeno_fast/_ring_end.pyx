"""The host's end of the two rings that it shares with a sidecar: lines in, whole messages out.

Nothing that lies in the rings is looked at before it was copied; see zeno_ring.h.
"""

cimport cython
from libc.stdint cimport int64_t, uint32_t, uint64_t
from libc.stdlib cimport free
from libc.string cimport memchr

from zeno_fast._lines cimport CORRUPT, LINE, LONG_LINE, NO_LINE, keep_part
from zeno_fast._memory cimport CHUNK, give_back, grow
from zeno_fast._posix cimport monotonic_ns, write_byte
from zeno_fast._shm cimport (
    Segment, ZR_EMPTY, ZR_FULL, ZR_MORE, zr_is_ready, zr_must_wake_reader, zr_must_wake_writer,
    zr_next, zr_publish, zr_put_some, zr_reader_awake, zr_reader_rests, zr_room, zr_take,
    zr_wanted, zr_writer_may_sleep, zs_open_rings,
)

import zeno_fast.platforms

cdef extern from "<sched.h>" nogil:
    int sched_yield()

cdef uint64_t BATCH = 8192  # bytes after which what was written is published


@cython.final
cdef class RingEnd:
    """Writes to one ring of a segment and reads from the other.

    One thread at a time may read, and one write; `rest` may come from any thread.

    Args:
        segment: Which.
        wake_fd: Where a byte wakes the guest: the write end of its stdin.
        max_message: Length in bytes above which not all of a message is kept; 512 at the least.

    Attributes:
        corrupt: Whether what is shared makes no sense any more.
        resting: Whether the guest writes a byte with what it sends next.
        long_message: What is kept of a message above the limit.
    """

    def __cinit__(self):
        self._message = NULL

    def __init__(self, Segment segment, int wake_fd, size_t max_message):
        zs_open_rings(&segment.segment, True, &self.reader, &self.writer)
        self.segment = segment
        self.wake_fd = wake_fd
        self._max_message = max_message
        self._alone = zeno_fast.platforms.processors() == 1

    def __dealloc__(self):
        free(self._message)

    cdef bint rest(self) noexcept nogil:
        """Have the guest write a byte with what it sends next; return whether it has sent some.

        From any thread: only who reads may take it back, for somebody else may be asleep by then.
        """
        self.resting = True
        return zr_reader_rests(&self.reader)

    cdef void stir(self) noexcept nogil:
        """Spare the guest the byte: this thread reads, and looks for itself."""
        if self.resting:
            self.resting = False
            zr_reader_awake(&self.reader)

    cdef Py_ssize_t put(self, const char *data, size_t nbytes) noexcept nogil:
        """Put lines, or a part of one, into the ring, as far as there is room.

        Returns how many bytes that were; -1 for none.
        """
        cdef size_t at = 0
        cdef size_t length
        cdef int64_t pushed
        cdef uint64_t published = self.writer.head
        cdef const char *end
        while at < nbytes:
            end = <const char *> memchr(data + at, 10, nbytes - at)
            length = nbytes - at if end is NULL else <size_t> (end - data) - at
            pushed = zr_put_some(&self.writer, data + at, length, ZR_MORE if end is NULL else 0)
            if pushed == ZR_FULL or self.writer.head - published > BATCH:
                published = self.writer.head
                zr_publish(&self.writer)
            if pushed == ZR_FULL:
                if zr_must_wake_reader(&self.writer):
                    self._nudge()
                if not self._wait_for_room(zr_wanted(&self.writer, length)):
                    break
            elif pushed < 0:
                self.corrupt = True
                break
            else:
                at += <size_t> pushed
                if <size_t> pushed == length and end is not NULL:
                    at += 1
        if self.writer.head != published:
            zr_publish(&self.writer)
        if at and zr_must_wake_reader(&self.writer):
            self._nudge()
        return <Py_ssize_t> at if at else -1

    cdef bint has_room(self) noexcept nogil:
        """Return whether the guest has made the room that the last `put` had waited for in vain.

        Where it has not, it will say so when it has, again if it has done so already.
        """
        return not self.corrupt and not zr_writer_may_sleep(&self.writer, self._wanted)

    cdef bint _wait_for_room(self, uint64_t wanted) noexcept nogil:
        """Wait a moment for the guest to read; where that is in vain it says so when it has."""
        cdef int64_t until = monotonic_ns() + SPIN_NS
        self._wanted = wanted
        while not self._alone and 0 <= zr_room(&self.writer, wanted) < <int64_t> wanted:
            if monotonic_ns() > until:
                break
            sched_yield()
        return not zr_writer_may_sleep(&self.writer, wanted)

    cdef void _nudge(self) noexcept nogil:
        """Wake the guest, which waits for its stdin; a full pipe does so already."""
        if self.wake_fd >= 0:
            write_byte(self.wake_fd, 10)

    cdef int next_message(self, const char **message, size_t *nbytes) noexcept nogil:
        """Take the next message, into memory of our own; it is good until the next call.

        Returns LINE, or NO_LINE, or LONG_LINE where it is above the limit: then this is the last
        part of it, of which `long_message` does not know yet. CORRUPT where the ring is of no use
        any more.
        """
        cdef uint32_t flags = 0
        cdef int64_t count
        while not self.corrupt:
            count = zr_next(&self.reader, &flags)
            if count == ZR_EMPTY:
                return NO_LINE
            if count < 0 or not self._take_record(count):
                break
            if flags & ZR_MORE:
                continue
            message[0] = self._message
            nbytes[0] = self._nbytes
            self._nbytes = 0
            if self.long_message.nbytes or nbytes[0] > self._max_message:
                return LONG_LINE
            return LINE
        self.corrupt = True
        return CORRUPT

    cdef void collect(self) noexcept nogil:
        """Take the pieces of a message that comes in several, but for the last one.

        While the guest writes them there is no use in doing anything else.
        """
        cdef uint32_t flags = 0
        cdef int64_t count, until
        while True:
            count = zr_next(&self.reader, &flags)
            if count < 0 or not flags & ZR_MORE or not self._take_record(count):
                return
            until = monotonic_ns() + SPIN_NS
            while not zr_is_ready(&self.reader):
                if self._alone or monotonic_ns() > until:
                    return
                sched_yield()

    cdef bint _take_record(self, int64_t nbytes) noexcept nogil:
        """Add the next record to the message; return False where there is no memory for it."""
        if self._nbytes > self._max_message:  # of which only the ends are kept
            keep_part(&self.long_message, self._message, self._nbytes)
            self._nbytes = 0
        if not self._make_room(<size_t> nbytes):
            return False
        zr_take(&self.reader, self._message + self._nbytes, <uint32_t> nbytes)
        if self.reader.head == self.reader.tail and zr_must_wake_writer(&self.reader):
            self._nudge()
        self._nbytes += <size_t> nbytes
        return True

    cdef bint _make_room(self, size_t nbytes) noexcept nogil:
        """Have room for this much more of a message; return whether there is."""
        cdef size_t capacity = self._capacity
        if capacity - self._nbytes >= nbytes and capacity:
            return True
        capacity = max(capacity, <size_t> CHUNK)
        while capacity - self._nbytes < nbytes:
            capacity *= 2
        return grow(&self._message, &self._capacity, capacity)

    cdef void relax(self) noexcept nogil:
        """Give back a large buffer that is empty."""
        if not self._nbytes:
            give_back(&self._message, &self._capacity)

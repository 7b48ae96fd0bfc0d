"""A sidecar's two pipes, and what it shares: bytes out, lines in, one place to wait for them.

The descriptors are non-blocking. Nothing here decides anything; the channel does.
"""

cimport cython
from cpython.bytes cimport PyBytes_FromStringAndSize
from libc.errno cimport EAGAIN, EINTR, errno
from libc.stdint cimport int64_t, uint32_t
from libc.stdlib cimport free, malloc
from libc.string cimport memchr, memmove

from zeno_fast._lines cimport HEAD, LINE, LONG_LINE, LongLine, NO_LINE, keep_part
from zeno_fast._memory cimport CHUNK, give_back, grow
from zeno_fast._posix cimport WIDE_PIPE, monotonic_ns, widen
from zeno_fast._ring_end cimport SPIN_NS, RingEnd
from zeno_fast._shm cimport Segment, zr_is_ready, zr_pause

import os

import zeno_fast.platforms

cdef extern from "<unistd.h>" nogil:
    ssize_t read(int fd, void *buf, size_t count)
    ssize_t write(int fd, const void *buf, size_t count)

cdef extern from "<poll.h>" nogil:
    ctypedef unsigned long nfds_t
    struct pollfd:
        int fd
        short events
        short revents
    int poll(pollfd *fds, nfds_t nfds, int timeout)
    int POLLIN, POLLOUT, POLLHUP, POLLERR

cdef extern from * nogil:
    """
    #include <pthread.h>
    static int threads_awake; /* that yield the processor until a guest has answered */
    static int add_awake(int more)
    {
        return __atomic_add_fetch(&threads_awake, more, __ATOMIC_RELAXED);
    }
    static void forget_awake(void) { threads_awake = 0; }
    static int forget_awake_in_children(void) { return pthread_atfork(NULL, NULL, forget_awake); }
    """
    int add_awake(int more)
    int forget_awake_in_children()

forget_awake_in_children()  # where they have no memory for it, they just sleep sooner

cdef extern from "<sched.h>" nogil:
    int sched_yield()

cdef extern from "zeno_blocking_read.h" nogil:
    int ZB_TOKEN_SIZE
    int zb_open(zb_reader *reader, int fd)
    uint32_t zb_generation()
    void zb_close(zb_reader *reader)
    void zb_end(zb_reader *reader)
    ssize_t zb_read(zb_reader *reader, void *buffer, size_t nbytes, int *marked)
    size_t zb_find_token(const char *data, size_t nbytes)

cdef int64_t PATIENT_NS = 100_000  # one that was asleep, within this; a thread may wait so long
cdef int64_t BUSY_NS = 8_000  # that giving up the processor takes where others want it
cdef int PAUSES = 60  # of the processor's own kind, before the first yield: a microsecond or two
cdef int64_t BLOCK_NS = 20_000_000  # a deadline this near is left to `wait`
cdef int MISSES = 3  # waits in vain in a row after which it is left for a while


cdef uint32_t zb_forks() noexcept:
    """Return how many forks lie between this process and the first one that had a pipe."""
    return zb_generation()


@cython.final
cdef class Pipe:
    """The host's ends of a sidecar's stdin and stdout; owns the descriptors until `close`.

    One thread at a time may fill and take lines, which the channel's leadership guarantees; `wake`
    may come from any thread.

    Args:
        read_fd: The read end of the sidecar's stdout.
        write_fd: The write end of its stdin.
        exit_fd: A descriptor that becomes readable when the process ends, or -1; borrowed.
        max_line: Length in bytes above which not all of a line is kept; 512 at the least.
    """

    def __cinit__(self):
        self.read_fd = self.write_fd = self.exit_fd = -1
        self._wake_in = self._wake_out = -1
        self._buffer = NULL
        self._reader.fd = -1
        self._typical_ns = SPIN_NS // 4

    def __init__(self, int read_fd, int write_fd, int exit_fd, size_t max_line):
        self._buffer = <char *> malloc(CHUNK)
        if self._buffer is NULL:
            raise MemoryError
        self._capacity = CHUNK
        self.max_line = max_line
        self._wake_out, self._wake_in = os.pipe()
        os.set_blocking(self._wake_out, False)
        os.set_blocking(self._wake_in, False)
        os.set_blocking(read_fd, False)
        os.set_blocking(write_fd, False)
        self.read_fd = read_fd
        self.write_fd = write_fd
        self.exit_fd = exit_fd
        # With one processor to run on, the guest cannot run while this process waits for it awake.
        self._alone = zeno_fast.platforms.processors() == 1
        self._most_awake = max(1, zeno_fast.platforms.processors() // 2)
        zb_open(&self._reader, read_fd)  # where that cannot be, `wait` does it all

    cdef int _make_room(self) noexcept nogil:
        """Have room for half a chunk behind what is buffered; 0 or a negative status."""
        if self._start == self._end:
            self._start = self._end = self._scanned = 0
        if self._capacity - self._end >= CHUNK // 2:
            return 0
        if self._start >= self._capacity // 2:
            memmove(self._buffer, self._buffer + self._start, self._end - self._start)
            self._scanned -= self._start
            self._end -= self._start
            self._start = 0
            return 0
        if self._long.nbytes or self._end - self._start > self.max_line:
            # Half a chunk at the least was read since it was called last.
            keep_part(&self._long, self._buffer + self._start, self._end - self._start)
            self._start = self._end = self._scanned = 0
            return 0
        if self._capacity >= WIDE_PIPE and not self._widened:
            self._widened = True
            widen(self.read_fd)
        return 0 if grow(&self._buffer, &self._capacity, self._capacity * 2) else NO_MEMORY

    cdef Py_ssize_t fill(self) noexcept nogil:
        """Read once. Returns the number of bytes, 0 at the end of input, or a negative status.

        A positive number may also mean that there is something in the ring.
        """
        cdef Py_ssize_t count
        if not self.shared:
            return self._fill_lines()
        if not self._stirred and zr_is_ready(&self.ring.reader):
            self.ring.collect()
            return 1
        self._stirred = False
        count = self._fill_lines()
        return 1 if count <= 0 and zr_is_ready(&self.ring.reader) else count

    cdef Py_ssize_t _fill_lines(self) noexcept nogil:
        """Read once from stdout, as `fill` does."""
        cdef ssize_t count
        cdef int status = self._make_room()
        if status:
            return status
        while True:
            count = read(self.read_fd, self._buffer + self._end, self._capacity - self._end)
            if count > 0:
                self._end += <size_t> count
                if self._marks:
                    count = self._without_marks(count)
                    if not count:
                        continue
                return AGAIN if self.shared and self._was_woken() else count
            if count == 0:
                return 0
            if errno == EAGAIN:
                return AGAIN
            if errno != EINTR:
                return FAILED

    cdef Py_ssize_t fill_soon(self, int64_t left_ns) noexcept nogil:
        """Wait a moment for something to read, and read it; as `fill`, or INTERRUPTED.

        First by yielding the processor, for being woken costs more than most answers take; then in
        a read that blocks for some milliseconds, which costs less than `wait` and `fill`.
        """
        cdef Py_ssize_t count
        if not self._alone:
            self._turns += 1
            self._stirred = self._stirred or not self._turns & 1023  # to have its noise in time
            count = self._wait_awake(PATIENT_NS)
            if count != AGAIN:
                return count
        return AGAIN if self._reader.fd < 0 or left_ns < BLOCK_NS else self._block()

    cdef Py_ssize_t spin(self) noexcept nogil:
        """Yield the processor until there is something to read or a moment has passed."""
        return self._wait_awake(SPIN_NS)

    cdef Py_ssize_t _wait_awake(self, int64_t most_ns) noexcept nogil:
        """Do as `spin`, for shared memory for up to `most_ns`.

        Where it passes in vain several times in a row, for a slow guest or on a busy machine, this
        is not tried for a while, and then for longer and longer.
        """
        cdef Py_ssize_t count
        cdef int64_t until = 0
        if self._skip > 0:
            self._skip -= 1
            return AGAIN
        if self.shared:
            return self._spin_shared(most_ns)
        while True:
            sched_yield()
            count = self.fill()
            if count != AGAIN:
                self._misses = 0
                return count
            if not until:
                until = monotonic_ns() + SPIN_NS
            elif monotonic_ns() >= until:
                break
        return self._missed(10)

    cdef Py_ssize_t _spin_shared(self, int64_t most_ns) noexcept nogil:
        """Wait for the ring as `spin` does, for about as long as the guest has taken of late.

        That may be as long as it takes to wake it: once both sides sleep, each would wake the other
        for every call, and only one that waits for longer can end it.
        """
        cdef Py_ssize_t count = AGAIN
        cdef int _
        if self._stirred:
            return self.fill()
        for _ in range(PAUSES if not self._alone else 0):
            if zr_is_ready(&self.ring.reader):
                self._typical_ns -= self._typical_ns // 8
                self._misses = 0
                self.ring.collect()
                return 1
            zr_pause()
        # Each takes a processor, and so does its guest: more would keep guests from running.
        if add_awake(1) <= self._most_awake:
            count = self._yield_to_guest(most_ns)
        add_awake(-1)
        return count

    cdef Py_ssize_t _yield_to_guest(self, int64_t most_ns) noexcept nogil:
        """Do as `_spin_shared`, with a processor to give up to others."""
        cdef int64_t began = monotonic_ns()
        cdef int64_t limit = min(most_ns, 2 * self._typical_ns + SPIN_NS // 3)
        cdef int64_t elapsed = 0
        cdef int64_t before
        while True:
            sched_yield()
            before = elapsed
            elapsed = monotonic_ns() - began
            if zr_is_ready(&self.ring.reader):
                self._typical_ns += (elapsed - self._typical_ns) // 8
                self._misses = 0
                self.ring.collect()
                return 1
            # Where somebody else had the processor meanwhile, others have more use for it.
            if elapsed >= limit or elapsed - before > BUSY_NS:
                break
        self._typical_ns = min(PATIENT_NS, 2 * self._typical_ns + 1000)
        return self._missed(6)

    cdef Py_ssize_t _missed(self, int most) noexcept nogil:
        """Count a wait in vain, and leave up to 2 ** `most` of them out; return AGAIN."""
        self._misses += 1
        if self._misses >= MISSES:
            self._skip = 1 << min(self._misses, most)
        return AGAIN

    cdef bint _was_woken(self) noexcept nogil:
        """Drop the bytes that woke this side, which are lines without anything.

        Return whether nothing else is buffered.
        """
        if self._scanned == self._start:
            while self._start < self._end and self._buffer[self._start] == 10:
                self._start += 1
            self._scanned = self._start
        return self._start == self._end

    cdef Py_ssize_t _block(self) noexcept nogil:
        """Read once, blocking for some milliseconds at most."""
        cdef ssize_t count
        cdef int marked = 0
        cdef int status = self._make_room()
        cdef bint interrupted
        if status:
            return status
        if self.rest():
            self.ring.stir()
            return 1
        count = zb_read(
            &self._reader, self._buffer + self._end, self._capacity - self._end, &marked)
        interrupted = count < 0 and errno == EINTR
        if self.shared:
            self.ring.stir()
        self._marks += marked
        if count > 0:
            self._end += <size_t> count
            count = self._without_marks(count)
            if self.shared and (zr_is_ready(&self.ring.reader) | self._was_woken()):
                return 1 if zr_is_ready(&self.ring.reader) else AGAIN
            return count if count else AGAIN
        if self.shared and zr_is_ready(&self.ring.reader):
            return 1
        if count == 0 and not marked:
            return 0
        return INTERRUPTED if interrupted else AGAIN

    cdef Py_ssize_t _without_marks(self, Py_ssize_t count) noexcept nogil:
        """Take tokens that ended reads out of the last `count` bytes; return how many are left.

        One may have begun in the bytes before. One that a guest has read from its own output never
        comes, and is looked for in vain.
        """
        cdef size_t begin, size, at
        while self._marks:
            begin = self._end - <size_t> count
            begin -= min(<size_t> ZB_TOKEN_SIZE - 1, begin - self._start)
            size = self._end - begin
            at = zb_find_token(self._buffer + begin, size)
            if at == size:
                break
            memmove(
                self._buffer + begin + at, self._buffer + begin + at + ZB_TOKEN_SIZE,
                size - at - ZB_TOKEN_SIZE)
            self._end -= ZB_TOKEN_SIZE
            if self._scanned > begin + at:
                self._scanned = begin + at
            count = max(0, count - ZB_TOKEN_SIZE)
            self._marks -= 1
        return count

    cdef Py_ssize_t buffered(self) noexcept nogil:
        """Return how many bytes of an unfinished line were read, and one more for the ring."""
        cdef Py_ssize_t count = <Py_ssize_t> (self._end - self._start)
        if self.shared and (self.ring.corrupt or zr_is_ready(&self.ring.reader)):
            count += 1
        return count

    cdef int next_line(self, const char **line, size_t *nbytes) noexcept nogil:
        """Take the next whole line, without its end; it is good until the next `fill`.

        Returns LINE, or NO_LINE where none is whole, or LONG_LINE where it is above the limit: then
        it is the begin of one; its size is in `long_nbytes` and its end in `long_end`. CORRUPT
        where the ring is of no use any more.
        """
        cdef char *found
        cdef size_t size
        cdef int taken
        if self.shared:
            taken = self.ring.next_message(line, nbytes)
            if taken == LONG_LINE:
                return self._cut(&self.ring.long_message, line, nbytes)
            if taken != NO_LINE:
                return taken
        if self._scanned >= self._end:
            return NO_LINE
        found = <char *> memchr(
            self._buffer + self._scanned, 10, self._end - self._scanned)
        if found is NULL:
            self._scanned = self._end
            return NO_LINE
        line[0] = self._buffer + self._start
        nbytes[0] = size = <size_t> (found - self._buffer) - self._start
        self._start = self._scanned = <size_t> (found - self._buffer) + 1
        if self._long.nbytes or size > self.max_line:
            return self._cut(&self._long, line, nbytes)
        return LINE

    cdef int _cut(self, LongLine *kept, const char **line, size_t *nbytes) noexcept nogil:
        """Take what is kept of a line above the limit, whose last part is given."""
        keep_part(kept, line[0], nbytes[0])
        self.long_nbytes = kept.nbytes
        self._long_end = kept.end
        kept.nbytes = 0
        line[0] = kept.begin
        nbytes[0] = HEAD
        return LONG_LINE

    cdef bytes long_end(self):
        """Return the end of the last line above the limit."""
        return PyBytes_FromStringAndSize(self._long_end, HEAD)

    cdef int take_rest(self, const char **text, size_t *nbytes) noexcept nogil:
        """Take what came after the last line end; at the end of input it is all there will be.

        Returns as `next_line` does.
        """
        text[0] = self._buffer + self._start
        nbytes[0] = self._end - self._start
        self._start = self._scanned = self._end
        if self._long.nbytes or nbytes[0] > self.max_line:
            return self._cut(&self._long, text, nbytes)
        return LINE if nbytes[0] else NO_LINE

    def use_ring(self, Segment segment):
        """Send and take messages through shared memory from now on.

        What comes on stdout counts as before; the guest must have said that it reads the ring, and
        nothing may be on its way to it.
        """
        self.ring = RingEnd(segment, self.write_fd, self.max_line)
        self.shared = True
        self.rest()

    cdef Segment segment(self):
        """Return what is shared with the guest, or None."""
        return None if self.ring is None else self.ring.segment

    cdef bint rest(self) noexcept nogil:
        """Have the guest write a byte with what it sends next; return whether it has sent some."""
        return self.shared and self.ring.rest()

    cdef void relax(self) noexcept nogil:
        """Give back large buffers that are empty."""
        if self.shared:
            self.ring.relax()
        if self._start == self._end:
            self._start = self._end = self._scanned = 0
            give_back(&self._buffer, &self._capacity)

    cdef int wait(self, int interest, int64_t deadline_ns) noexcept nogil:
        """Wait until something of `interest` is ready, `wake` is called or the deadline passes.

        READABLE at the end of input, too. Returns what is ready, 0 for the deadline or a wake, or
        AGAIN after a signal. A negative deadline never passes.
        """
        cdef pollfd fds[4]
        cdef int64_t left
        cdef int timeout = -1
        cdef int ready = 0
        cdef char drained[64]
        cdef int count
        if self.shared:
            if interest & READABLE and self.rest():
                self.ring.stir()
                return READABLE
            # A guest that has made room for what waits says so on stdout, too.
            if interest & WRITABLE:
                interest = (interest | READABLE) & ~WRITABLE
        fds[0].fd = self._wake_out
        fds[0].events = POLLIN
        fds[1].fd = self.read_fd if interest & READABLE else -1
        fds[1].events = POLLIN
        fds[2].fd = self.exit_fd if interest & EXITED else -1
        fds[2].events = POLLIN
        fds[3].fd = self.write_fd if interest & WRITABLE else -1
        fds[3].events = POLLOUT
        if deadline_ns >= 0:
            left = deadline_ns - monotonic_ns()
            if left <= 0:
                timeout = 0
            else:
                left = (left + 999999) // 1000000
                timeout = <int> left if left < 0x7fffffff else 0x7fffffff
        count = poll(fds, 4, timeout)
        if self.shared:
            self.ring.stir()
        if count < 0:
            return AGAIN
        if count == 0:
            return 0
        if fds[0].revents:
            while read(self._wake_out, drained, sizeof(drained)) == sizeof(drained):
                pass
        if fds[1].revents:
            self._stirred = True
            ready |= READABLE
        if fds[2].revents:
            ready |= EXITED
        if fds[3].revents:
            ready |= WRITABLE
        return ready

    cdef void wake(self) noexcept nogil:
        """End a `wait` in another thread, or the next one."""
        cdef char byte = 0
        if self._wake_in >= 0:
            # A full pipe means that a wake is pending already.
            while write(self._wake_in, &byte, 1) < 0 and errno == EINTR:
                pass
            if self._reader.fd >= 0:
                zb_end(&self._reader)

    def close_write(self):
        """Close the write end, so that the sidecar sees the end of its input. Idempotent."""
        cdef int fd = self.write_fd
        if fd >= 0:
            self.write_fd = -1
            if self.ring is not None:
                self.ring.wake_fd = -1
            os.close(fd)

    def close(self):
        """Close every descriptor; no thread may be inside. Idempotent."""
        cdef int fd
        self.close_write()
        zb_close(&self._reader)
        for fd in (self.read_fd, self._wake_in, self._wake_out):
            if fd >= 0:
                os.close(fd)
        self.read_fd = self._wake_in = self._wake_out = -1
        self.exit_fd = -1
        self.shared = False
        self.ring = None

    def __dealloc__(self):
        zb_close(&self._reader)
        free(self._buffer)

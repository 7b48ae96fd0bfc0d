"""A sidecar's two pipes, and what it shares: bytes out, lines in, one place to wait for them.

The descriptors are non-blocking. Nothing here decides anything; the channel does.
"""

cimport cython
from cpython.bytes cimport PyBytes_FromStringAndSize
from libc.errno cimport EAGAIN, EINTR, EPIPE, errno
from libc.stdint cimport int64_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc, realloc
from libc.string cimport memchr, memcpy, memmove

import os

from zeno_fast._shm cimport (
    Segment, ZR_EMPTY, ZR_FULL, ZR_MORE, zr_is_ready, zr_must_wake_reader, zr_must_wake_writer,
    zr_next, zr_pause, zr_publish, zr_put_some, zr_room, zr_reader_awake, zr_reader_rests, zr_take,
    zr_wanted, zr_writer_may_sleep, zs_open_rings,
)

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

cdef extern from "<time.h>" nogil:
    struct timespec:
        long tv_sec
        long tv_nsec
    int clock_gettime(int clock, timespec *now)
    int CLOCK_MONOTONIC

cdef extern from * nogil:
    """
    #include <fcntl.h>
    #ifndef F_SETPIPE_SZ
    #define F_SETPIPE_SZ 0
    #endif
    """
    int F_SETPIPE_SZ
    int fcntl(int fd, int command, int argument)

cdef extern from * nogil:
    """
    #include <stdint.h>
    #if defined(__linux__)
    #include <sys/mman.h>
    #endif
    /* Most of the time that a large message takes beside its copying goes into page faults. */
    static void use_huge_pages(char *memory, size_t nbytes)
    {
    #ifdef MADV_HUGEPAGE
        const uintptr_t huge = (uintptr_t)1 << 21;
        const uintptr_t begin = ((uintptr_t)memory + huge - 1) & ~(huge - 1);
        const uintptr_t end = ((uintptr_t)memory + nbytes) & ~(huge - 1);
        if (begin < end)
            madvise((void *)begin, end - begin, MADV_HUGEPAGE);
    #else
        (void)memory;
        (void)nbytes;
    #endif
    }
    """
    void use_huge_pages(char *memory, size_t nbytes)

cdef extern from * nogil:
    """
    #include <signal.h>
    static int sigpipe_ends_us(void)
    {
        struct sigaction action;
        return sigaction(SIGPIPE, NULL, &action) != 0 || action.sa_handler == SIG_DFL;
    }
    """
    int sigpipe_ends_us()

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

cdef extern from "<signal.h>" nogil:
    ctypedef struct sigset_t:
        pass
    int sigemptyset(sigset_t *signals)
    int sigaddset(sigset_t *signals, int number)
    int sigismember(const sigset_t *signals, int number)
    int sigpending(sigset_t *signals)
    int pthread_sigmask(int how, const sigset_t *signals, sigset_t *before)
    int sigtimedwait(const sigset_t *signals, void *info, const timespec *timeout)
    int SIGPIPE, SIG_BLOCK, SIG_SETMASK

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

# A guest that is awake answers within this; longer, and sleeping costs less than waiting.
cdef int64_t SPIN_NS = 30_000
cdef int64_t PATIENT_NS = 100_000  # one that was asleep, within this; a thread may wait so long
cdef int64_t BUSY_NS = 8_000  # that giving up the processor takes where others want it
cdef uint64_t BATCH = 8192  # bytes of a ring after which what was written is published
cdef int PAUSES = 60  # of the processor's own kind, before the first yield: a microsecond or two
cdef int64_t BLOCK_NS = 20_000_000  # a deadline this near is left to `wait`
cdef int MISSES = 3  # waits in vain in a row after which it is left for a while

cdef size_t CHUNK = 64 * 1024  # what a Linux pipe holds, so one read empties it
cdef size_t WIDE = 512 * 1024  # what a pipe is made to hold for larger messages
cdef size_t RELAXED = 1024 * 1024  # a larger buffer is given back once it is empty


cdef uint32_t zb_forks() noexcept:
    """Return how many forks lie between this process and the first one that had a pipe."""
    return zb_generation()


cdef int64_t monotonic_ns() noexcept nogil:
    """Read the clock of time.monotonic_ns."""
    cdef timespec now
    clock_gettime(CLOCK_MONOTONIC, &now)
    return <int64_t> now.tv_sec * 1000000000 + now.tv_nsec


cdef void widen(int fd) noexcept nogil:
    """Let a pipe hold more, for large messages, where the system allows it."""
    if F_SETPIPE_SZ:
        fcntl(fd, F_SETPIPE_SZ, <int> WIDE)


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
        self._buffer = self._message = NULL
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
        cdef size_t capacity
        cdef char *grown
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
            _keep(&self._long, self._buffer + self._start, self._end - self._start)
            self._start = self._end = self._scanned = 0
            return 0
        if self._capacity >= WIDE and not self._widened:
            self._widened = True
            widen(self.read_fd)
        capacity = self._capacity * 2
        grown = <char *> realloc(self._buffer, capacity)
        if grown is NULL:
            return NO_MEMORY
        use_huge_pages(grown, capacity)
        self._buffer = grown
        self._capacity = capacity
        return 0

    cdef Py_ssize_t fill(self) noexcept nogil:
        """Read once. Returns the number of bytes, 0 at the end of input, or a negative status.

        A positive number may also mean that there is something in the ring.
        """
        cdef Py_ssize_t count
        if not self.shared:
            return self._fill_lines()
        if not self._stirred and zr_is_ready(&self._in):
            self._collect()
            return 1
        self._stirred = False
        count = self._fill_lines()
        return 1 if count <= 0 and zr_is_ready(&self._in) else count

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
            if zr_is_ready(&self._in):
                self._typical_ns -= self._typical_ns // 8
                self._misses = 0
                self._collect()
                return 1
            zr_pause()
        # Each takes a processor, and so does its guest: more would keep guests from running.
        if add_awake(1) <= self._most_awake:
            count = self._yield_to_guest(most_ns)
        add_awake(-1)
        return count

    cdef Py_ssize_t _yield_to_guest(self, int64_t most_ns) noexcept nogil:
        cdef int64_t began = monotonic_ns()
        cdef int64_t limit = min(most_ns, 2 * self._typical_ns + SPIN_NS // 3)
        cdef int64_t elapsed = 0
        cdef int64_t before
        while True:
            sched_yield()
            before = elapsed
            elapsed = monotonic_ns() - began
            if zr_is_ready(&self._in):
                self._typical_ns += (elapsed - self._typical_ns) // 8
                self._misses = 0
                self._collect()
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
            self.stir()
            return 1
        count = zb_read(
            &self._reader, self._buffer + self._end, self._capacity - self._end, &marked)
        interrupted = count < 0 and errno == EINTR
        self.stir()
        self._marks += marked
        if count > 0:
            self._end += <size_t> count
            count = self._without_marks(count)
            if self.shared and (zr_is_ready(&self._in) | self._was_woken()):
                return 1 if zr_is_ready(&self._in) else AGAIN
            return count if count else AGAIN
        if self.shared and zr_is_ready(&self._in):
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
        if self.shared and (self.corrupt or zr_is_ready(&self._in)):
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
            taken = self._next_message(line, nbytes)
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
        _keep(kept, line[0], nbytes[0])
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

    # -- shared memory ------------------------------------------------------------------------

    def use_ring(self, Segment segment):
        """Send and take messages through shared memory from now on.

        What comes on stdout counts as before; the guest must have said that it reads the ring, and
        nothing may be on its way to it.
        """
        zs_open_rings(&segment.segment, True, &self._in, &self._out)
        self._segment = segment
        self.shared = True
        self.rest()

    cdef bint rest(self) noexcept nogil:
        """Have the guest write a byte with what it sends next; return whether it has sent some.

        From any thread: only who reads may take it back, for somebody else may be asleep by then.
        """
        if not self.shared:
            return False
        self.resting = True
        return zr_reader_rests(&self._in)

    cdef void stir(self) noexcept nogil:
        """Spare the guest the byte: this thread reads, and looks for itself."""
        if self.resting:
            self.resting = False
            zr_reader_awake(&self._in)

    cdef Py_ssize_t put(self, const char *data, size_t nbytes) noexcept nogil:
        """Put lines, or a part of one, into the ring, as far as there is room.

        Returns how many bytes that were; -1 for none.
        """
        cdef size_t at = 0
        cdef size_t length
        cdef int64_t pushed
        cdef uint64_t published = self._out.head
        cdef const char *end
        while at < nbytes:
            end = <const char *> memchr(data + at, 10, nbytes - at)
            length = nbytes - at if end is NULL else <size_t> (end - data) - at
            pushed = zr_put_some(&self._out, data + at, length, ZR_MORE if end is NULL else 0)
            if pushed == ZR_FULL or self._out.head - published > BATCH:
                published = self._out.head
                zr_publish(&self._out)
            if pushed == ZR_FULL:
                if zr_must_wake_reader(&self._out):
                    self._nudge()
                if not self._wait_for_room(zr_wanted(&self._out, length)):
                    break
            elif pushed < 0:
                self.corrupt = True
                break
            else:
                at += <size_t> pushed
                if <size_t> pushed == length and end is not NULL:
                    at += 1
        if self._out.head != published:
            zr_publish(&self._out)
        if at and zr_must_wake_reader(&self._out):
            self._nudge()
        return <Py_ssize_t> at if at else -1

    cdef bint has_room(self) noexcept nogil:
        """Return whether the guest has made the room that the last `put` had waited for in vain.

        Where it has not, it will say so when it has, again if it has done so already.
        """
        return self.shared and not self.corrupt and not zr_writer_may_sleep(
            &self._out, self._wanted)

    cdef bint _wait_for_room(self, uint64_t wanted) noexcept nogil:
        """Wait a moment for the guest to read; where that is in vain it says so when it has."""
        cdef int64_t until = monotonic_ns() + SPIN_NS
        self._wanted = wanted
        while not self._alone and 0 <= zr_room(&self._out, wanted) < <int64_t> wanted:
            if monotonic_ns() > until:
                break
            sched_yield()
        return not zr_writer_may_sleep(&self._out, wanted)

    cdef void _nudge(self) noexcept nogil:
        """Wake the guest, which waits for its stdin; a full pipe does so already."""
        cdef char byte = 10
        cdef int error = 0
        if self.write_fd < 0:
            return
        if sigpipe_ends_us():
            write_unkilled(self.write_fd, &byte, 1, &error)
        else:
            write_once(self.write_fd, &byte, 1, &error)

    cdef int _next_message(self, const char **line, size_t *nbytes) noexcept nogil:
        """Take the next message from the ring, as `next_line` does, into memory of our own."""
        cdef uint32_t flags = 0
        cdef int64_t count
        cdef size_t at
        while not self.corrupt:
            count = zr_next(&self._in, &flags)
            if count == ZR_EMPTY:
                return NO_LINE
            if count < 0 or not self._take_record(count):
                break
            if flags & ZR_MORE:
                continue
            at = self._message_nbytes
            self._message_nbytes = 0
            line[0] = self._message
            nbytes[0] = at
            if self._long_message.nbytes or at > self.max_line:
                return self._cut(&self._long_message, line, nbytes)
            return LINE
        self.corrupt = True
        return CORRUPT

    cdef void _collect(self) noexcept nogil:
        """Take the pieces of a message that comes in several, but for the last one.

        While the guest writes them there is no use in doing anything else.
        """
        cdef uint32_t flags = 0
        cdef int64_t count, until
        while True:
            count = zr_next(&self._in, &flags)
            if count < 0 or not flags & ZR_MORE or not self._take_record(count):
                return
            until = monotonic_ns() + SPIN_NS
            while not zr_is_ready(&self._in):
                if self._alone or monotonic_ns() > until:
                    return
                sched_yield()

    cdef bint _take_record(self, int64_t nbytes) noexcept nogil:
        """Add the next record to the message; return False where there is no memory for it."""
        if self._message_nbytes > self.max_line:  # of which only the ends are kept
            _keep(&self._long_message, self._message, self._message_nbytes)
            self._message_nbytes = 0
        if not self._make_message_room(<size_t> nbytes):
            return False
        zr_take(&self._in, self._message + self._message_nbytes, <uint32_t> nbytes)
        if self._in.head == self._in.tail and zr_must_wake_writer(&self._in):
            self._nudge()
        self._message_nbytes += <size_t> nbytes
        return True

    cdef int _make_message_room(self, size_t nbytes) noexcept nogil:
        """Have room for this much more of a message; return whether there is."""
        cdef size_t capacity = self._message_capacity
        cdef char *grown
        if capacity - self._message_nbytes >= nbytes and capacity:
            return True
        capacity = max(capacity, CHUNK)
        while capacity - self._message_nbytes < nbytes:
            capacity *= 2
        grown = <char *> realloc(self._message, capacity)
        if grown is NULL:
            return False
        use_huge_pages(grown, capacity)
        self._message = grown
        self._message_capacity = capacity
        return True

    # -- both ---------------------------------------------------------------------------------

    cdef void relax(self) noexcept nogil:
        """Give back large buffers that are empty."""
        cdef char *shrunk
        if self._message_capacity > RELAXED and not self._message_nbytes:
            shrunk = <char *> realloc(self._message, CHUNK)
            if shrunk is not NULL:
                self._message = shrunk
                self._message_capacity = CHUNK
        if self._capacity > RELAXED and self._start == self._end:
            shrunk = <char *> realloc(self._buffer, CHUNK)
            if shrunk is not NULL:
                self._buffer = shrunk
                self._capacity = CHUNK
                self._start = self._end = self._scanned = 0

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
                self.stir()
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
        self.stir()
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
        self.shared = self.resting = False
        self._segment = None

    def __dealloc__(self):
        zb_close(&self._reader)
        free(self._buffer)
        free(self._message)


cdef void _keep(LongLine *kept, const char *part, size_t nbytes) noexcept nogil:
    """Note a part of a line above the limit; the first one has HEAD bytes at the least."""
    if not kept.nbytes:
        memcpy(kept.begin, part, HEAD)
    if nbytes >= HEAD:
        memcpy(kept.end, part + nbytes - HEAD, HEAD)
    else:
        memmove(kept.end, kept.end + nbytes, HEAD - nbytes)
        memcpy(kept.end + HEAD - nbytes, part, nbytes)
    kept.nbytes += nbytes


cdef Py_ssize_t write_unkilled(
    int fd, const char *data, size_t nbytes, int *error
) noexcept nogil:
    """Write once in a program that SIGPIPE ends, as those that write to a pager want it to."""
    cdef sigset_t pipe, before, pending
    cdef timespec now
    cdef Py_ssize_t sent
    cdef bint was_pending
    sigemptyset(&pipe)
    sigaddset(&pipe, SIGPIPE)
    sigpending(&pending)
    was_pending = sigismember(&pending, SIGPIPE) == 1
    pthread_sigmask(SIG_BLOCK, &pipe, &before)
    sent = write_once(fd, data, nbytes, error)
    if sent < 0 and error[0] == EPIPE and not was_pending:
        now.tv_sec = now.tv_nsec = 0
        while sigtimedwait(&pipe, NULL, &now) < 0 and errno == EINTR:
            pass
    pthread_sigmask(SIG_SETMASK, &before, NULL)
    return sent


cdef Py_ssize_t write_once(int fd, const char *data, size_t nbytes, int *error) noexcept nogil:
    cdef ssize_t sent
    while True:
        sent = write(fd, data, nbytes)
        if sent >= 0:
            return sent
        error[0] = errno
        if error[0] != EINTR:
            return -1

"""A sidecar's two pipes: bytes out, lines in, and one place to wait for both.

The descriptors are non-blocking. Nothing here decides anything; the channel does.
"""

cimport cython
from cpython.bytes cimport PyBytes_FromStringAndSize
from libc.errno cimport EAGAIN, EINTR, errno
from libc.stdint cimport int64_t, uint32_t
from libc.stdlib cimport free, malloc, realloc
from libc.string cimport memchr, memcpy, memmove

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
        self._buffer = NULL
        self._reader.fd = -1

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
        if self._skipped or self._end - self._start > self.max_line:
            self._skip_line()
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
        """Read once. Returns the number of bytes, 0 at the end of input, or a negative status."""
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
                return count
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
            count = self.spin()
            if count != AGAIN:
                return count
        return AGAIN if self._reader.fd < 0 or left_ns < BLOCK_NS else self._block()

    cdef Py_ssize_t spin(self) noexcept nogil:
        """Yield the processor until there is something to read or a moment has passed.

        Where it passes in vain several times in a row, for a slow guest or on a busy machine, this
        is not tried for a while, and then for longer and longer.
        """
        cdef Py_ssize_t count
        cdef int64_t until = 0
        if self._skip > 0:
            self._skip -= 1
            return AGAIN
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
        self._misses += 1
        if self._misses >= MISSES:
            self._skip = 1 << (self._misses if self._misses < 10 else 10)
        return AGAIN

    cdef Py_ssize_t _block(self) noexcept nogil:
        """Read once, blocking for some milliseconds at most."""
        cdef ssize_t count
        cdef int marked = 0
        cdef int status = self._make_room()
        cdef bint interrupted
        if status:
            return status
        count = zb_read(
            &self._reader, self._buffer + self._end, self._capacity - self._end, &marked)
        interrupted = count < 0 and errno == EINTR
        self._marks += marked
        if count > 0:
            self._end += <size_t> count
            count = self._without_marks(count)
            return count if count else AGAIN
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

    cdef void _skip_line(self) noexcept nogil:
        """Let go of what was read of a line above the limit, but for its begin and its end."""
        if not self._skipped:
            memcpy(self._head, self._buffer + self._start, HEAD)
        # Half a chunk at the least was read since it was called last.
        memcpy(self._tail, self._buffer + self._end - HEAD, HEAD)
        self._skipped += self._end - self._start
        self._start = self._end = self._scanned = 0

    cdef Py_ssize_t buffered(self) noexcept nogil:
        """Return how many bytes of an unfinished line were read."""
        return <Py_ssize_t> (self._end - self._start)

    cdef int next_line(self, const char **line, size_t *nbytes) noexcept nogil:
        """Take the next whole line, without its end; it is good until the next `fill`.

        Returns LINE, or NO_LINE where none is whole, or LONG_LINE where it is above the limit: then
        it is the begin of one; its size is in `long_nbytes` and its end in `long_end`.
        """
        cdef char *found
        cdef size_t size
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
        if self._skipped or size > self.max_line:
            return self._cut(line, nbytes)
        return LINE

    cdef int _cut(self, const char **line, size_t *nbytes) noexcept nogil:
        """Take what is kept of a line above the limit, whose last part is given."""
        cdef size_t size = nbytes[0]
        self.long_nbytes = self._skipped + size
        if not self._skipped:
            memcpy(self._head, line[0], HEAD)  # the least limit is larger
        if size >= HEAD:
            memcpy(self._tail, line[0] + size - HEAD, HEAD)
        else:
            memmove(self._tail, self._tail + size, HEAD - size)
            memcpy(self._tail + HEAD - size, line[0], size)
        self._skipped = 0
        line[0] = self._head
        nbytes[0] = HEAD
        return LONG_LINE

    cdef bytes long_end(self):
        """Return the end of the last line above the limit."""
        return PyBytes_FromStringAndSize(self._tail, HEAD)

    cdef int take_rest(self, const char **text, size_t *nbytes) noexcept nogil:
        """Take what came after the last line end; at the end of input it is all there will be.

        Returns as `next_line` does.
        """
        text[0] = self._buffer + self._start
        nbytes[0] = self._end - self._start
        self._start = self._scanned = self._end
        if self._skipped or nbytes[0] > self.max_line:
            return self._cut(text, nbytes)
        return LINE if nbytes[0] else NO_LINE

    cdef void relax(self) noexcept nogil:
        """Give back a large buffer that is empty."""
        cdef char *shrunk
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
        if count < 0:
            return AGAIN
        if count == 0:
            return 0
        if fds[0].revents:
            while read(self._wake_out, drained, sizeof(drained)) == sizeof(drained):
                pass
        if fds[1].revents:
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

    def __dealloc__(self):
        zb_close(&self._reader)
        free(self._buffer)

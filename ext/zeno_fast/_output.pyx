"""What is written to a sidecar, in order, without ever waiting for it."""

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.errno cimport EAGAIN
from libc.signal cimport SIGPIPE
from libc.stdlib cimport free, realloc
from libc.string cimport memcpy

import _signal  # whose functions cost a tenth of what the wrappers in `signal` do
from collections import deque

from zeno_fast._pipe cimport Pipe
from zeno_fast._posix cimport widen, write_once, write_unkilled

cdef object _getsignal = _signal.getsignal
cdef object _DEFAULT = _signal.SIG_DFL

cdef enum:
    BRIEF = 4096  # bytes whose copy into a pipe takes less time than to let go of the GIL and wait
    LARGE = 524288  # bytes of a part for which the pipe is made to hold more
    RELAXED = 1048576  # bytes of a buffer above which it is given back once it is empty


@cython.final
cdef class Output:
    """The queue in front of a pipe; what the pipe does not take at once stays in it.

    Any thread may use it: while one is in the system call, without the GIL, the others only add.
    Small parts are copied together, large ones are kept as they are. In order: `_first`, which is
    being written and so never moves, `_parts`, and `_last`, to which small parts are added.

    Attributes:
        nbytes: What is queued, in bytes.
        written: What the pipe has taken since the beginning, in bytes.
        writing: Whether a thread is in the system call.
        full: Whether the pipe took less than there is; `flush` again when it is writable.
        broken: Whether the other end is closed; everything queued was dropped.
    """

    def __cinit__(self):
        self._first.data = NULL
        self._last.data = NULL

    def __init__(self, Pipe pipe):
        self._pipe = pipe
        self._parts = deque()

    def __dealloc__(self):
        free(self._first.data)
        free(self._last.data)

    cdef char *room(self, size_t nbytes) except NULL:
        """Return where up to `nbytes` may be put next; `added` says how many were."""
        cdef size_t capacity = self._last.capacity
        cdef char *grown
        if capacity - self._last.end < nbytes:
            while capacity - self._last.end < nbytes:
                capacity = capacity * 2 if capacity else 4096
            grown = <char *> realloc(self._last.data, capacity)
            if grown is NULL:
                raise MemoryError
            self._last.data = grown
            self._last.capacity = capacity
        return self._last.data + self._last.end

    cdef void added(self, size_t nbytes) noexcept:
        """Count bytes that were put into the room; `flush` writes them."""
        self._last.end += nbytes
        self.nbytes += nbytes

    cdef int put_bytes(self, bytes part) except -1:
        """Add a part, without a copy where it is large; `flush` writes it."""
        if PyBytes_GET_SIZE(part) <= SMALL:
            memcpy(
                self.room(PyBytes_GET_SIZE(part)), PyBytes_AS_STRING(part), PyBytes_GET_SIZE(part))
            self.added(PyBytes_GET_SIZE(part))
            return 0
        if PyBytes_GET_SIZE(part) > LARGE and not self._widened:
            self._widened = True
            widen(self._pipe.write_fd)
        if self._last.end:
            self._parts.append(PyBytes_FromStringAndSize(self._last.data, self._last.end))
            self._last.end = 0
        self._parts.append(part)
        self.nbytes += PyBytes_GET_SIZE(part)
        return 0

    cdef int flush(self) except -1:
        """Write what is queued until it is gone or the pipe is full."""
        cdef Py_ssize_t sent
        cdef bytes part
        if self.writing:
            return 0  # whoever writes comes back for what has been added
        while not self.broken and self._pipe.write_fd >= 0:
            if self._first.start < self._first.end:
                sent = self._write(
                    self._first.data + self._first.start, self._first.end - self._first.start)
                if sent > 0:
                    self._first.start += sent
                    self.nbytes -= sent
            elif self._parts:
                part = self._parts[0]
                sent = self._write(
                    PyBytes_AS_STRING(part) + self._offset, PyBytes_GET_SIZE(part) - self._offset)
                if sent > 0:
                    self._offset += sent
                    self.nbytes -= sent
                    # `clear` may have emptied the queue during the write.
                    if self._parts and self._offset == PyBytes_GET_SIZE(part):
                        self._parts.popleft()
                        self._offset = 0
            elif self._last.end:
                self._swap()
                continue
            else:
                self.full = False
                return 0
            if sent < 0 and not self.broken:
                if self._pipe.shared and self._pipe.ring.has_room():
                    continue  # whoever was told of it may have found this one writing
                self.full = True
                return 0
        if self.broken:
            self.clear()
        self.full = False
        return 0

    cdef int clear(self) except -1:
        """Drop what is queued."""
        self._parts.clear()
        self.nbytes = 0
        self._offset = 0
        self._last.end = 0
        if not self.writing:
            self._first.start = self._first.end = 0
        return 0

    cdef void _swap(self) noexcept:
        """Let what was added last be what is written next."""
        cdef Bytes empty = self._first
        self._first = self._last
        self._first.start = 0
        if empty.capacity > RELAXED:
            free(empty.data)
            empty.data = NULL
            empty.capacity = 0
        empty.start = empty.end = 0
        self._last = empty

    cdef Py_ssize_t _write(self, const char *data, size_t nbytes) noexcept:
        """Write once; returns the number of bytes, or -1 where the pipe takes none."""
        cdef Py_ssize_t sent
        cdef int error = 0
        cdef int fd = self._pipe.write_fd
        if self._pipe.shared:
            return self._put(data, nbytes)
        if _getsignal(SIGPIPE) is _DEFAULT:
            self.writing = True
            with nogil:
                sent = write_unkilled(fd, data, nbytes, &error)
            self.writing = False
        elif nbytes <= BRIEF:
            sent = write_once(fd, data, nbytes, &error)
        else:
            self.writing = True
            with nogil:
                sent = write_once(fd, data, nbytes, &error)
            self.writing = False
        if sent < 0 and error != EAGAIN:
            self.broken = True
        elif sent > 0:
            self.written += sent
        return sent

    cdef Py_ssize_t _put(self, const char *data, size_t nbytes) noexcept:
        """Write once to shared memory, as `_write` does."""
        cdef Py_ssize_t sent
        if nbytes <= BRIEF:
            sent = self._pipe.ring.put(data, nbytes)
        else:
            self.writing = True
            with nogil:
                sent = self._pipe.ring.put(data, nbytes)
            self.writing = False
        if sent > 0:
            self.written += sent
        elif self._pipe.ring.corrupt:
            self.broken = True
        return sent

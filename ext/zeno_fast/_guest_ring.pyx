"""The shared memory of a sidecar written in Python; see zeno_guest.h."""

cimport cython
from cpython.buffer cimport PyBuffer_FillInfo
from cpython.bytes cimport PyBytes_FromStringAndSize
from cpython.exc cimport PyErr_CheckSignals
from libc.errno cimport EINTR, errno
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy

import os
import time

from zeno_fast._shm cimport (
    ZR_FULL, zr_fence, zr_is_ready, zr_must_wake_reader, zr_push_some, zr_reader, zr_reader_awake,
    zr_reader_may_sleep, zr_writer, zs_segment,
)

cdef extern from "zeno_guest.h" nogil:
    const int ZG_ENDED, ZG_INTERRUPTED, ZG_NOTHING
    ctypedef struct zg_buffer:
        uint64_t id
        uint64_t size
        uint8_t *base
    ctypedef struct zg_link:
        zs_segment segment
        zg_buffer *buffers
        size_t buffer_count
        int input
        int output
        int uses_ring
        zr_reader reader
        zr_writer writer
    void zg_open(zg_link *link)
    int zg_offers_ring(const zg_link *link)
    int zg_offers_arena(const zg_link *link)
    void zg_use_ring(zg_link *link)
    void zg_close(zg_link *link)
    int64_t zg_receive_soon(zg_link *link, const char **message)
    int64_t zg_write(zg_link *link, const void *bytes, size_t nbytes)
    void *zg_bytes(zg_link *link, uint64_t offset, uint64_t nbytes)
    void *zg_new_bytes(zg_link *link, uint64_t nbytes, uint64_t *offset)
    int zg_offers_buffers(const zg_link *link)
    void *zg_buffer_bytes(zg_link *link, uint64_t id, uint64_t offset, uint64_t nbytes)
    void zg_forget_buffer(zg_link *link, uint64_t id)

cdef extern from "<poll.h>" nogil:
    struct pollfd:
        int fd
        short events
        short revents
    int poll(pollfd *fds, unsigned long nfds, int timeout)
    int POLLIN

cdef extern from "<unistd.h>" nogil:
    ssize_t read(int fd, void *buf, size_t count)
    int usleep(unsigned int microseconds)

cdef extern from "pythread.h" nogil:
    ctypedef void *PyThread_type_lock
    PyThread_type_lock PyThread_allocate_lock()
    void PyThread_free_lock(PyThread_type_lock)
    void PyThread_release_lock(PyThread_type_lock)
    int PyThread_acquire_lock(PyThread_type_lock, int)

cdef double NAP = 0.0001  # seconds between two looks for room, while another has the wake-ups
cdef unsigned int BUSY_US = 5000  # that a call takes before somebody else reads


@cython.final
cdef class GuestRing:
    """Messages through the memory that ZENO_SHM announces.

    One thread receives, and one sends, at a time.

    Args:
        input: Descriptor of the host's wake-ups, which ends when the host does.
        output: Descriptor of those for the host.

    Raises OSError where the host shares no memory, or none that this version understands.
    """

    cdef zg_link _link
    cdef int _wake_in
    cdef int _wake_out
    cdef bint _ended
    cdef bint _inside  # a thread receives
    cdef bint _asleep  # and sleeps
    cdef bint _watched  # a thread waits in `wait_busy` for that to end
    cdef uint32_t _turn  # calls of `receive` that returned
    cdef PyThread_type_lock _gate
    cdef dict _views  # how many there are of each buffer
    cdef set _forgotten  # buffers that go with their last view

    def __cinit__(self, int input, int output):
        self._wake_in = self._wake_out = -1
        self._gate = NULL
        self._views = {}
        self._forgotten = set()
        zg_open(&self._link)
        if not zg_offers_ring(&self._link):
            raise OSError("the host shares no memory with this process")
        self._link.input = input
        self._link.output = output
        self._wake_out, self._wake_in = os.pipe()
        os.set_blocking(self._wake_out, False)
        os.set_blocking(self._wake_in, False)
        self._gate = PyThread_allocate_lock()
        if self._gate is NULL:
            raise MemoryError
        PyThread_acquire_lock(self._gate, True)

    def use(self):
        """Begin: what the host sends from now on comes through here."""
        zg_use_ring(&self._link)

    def receive(self, timeout=None):
        """Wait for a message and return its bytes; None once there will be no more.

        Empty bytes where `wake` was called, a signal came or so many seconds have passed.
        """
        cdef const char *message
        cdef int64_t nbytes
        cdef int milliseconds = -1
        if timeout is not None:
            milliseconds = max(0, min(1 << 30, round(timeout * 1000)))
        self._inside = True
        with nogil:
            nbytes = zg_receive_soon(&self._link, &message)
            if nbytes == ZG_NOTHING:
                nbytes = self._sleep(milliseconds)
                if nbytes == ZG_NOTHING:
                    nbytes = zg_receive_soon(&self._link, &message)
        self._inside = False
        self._turn += 1
        if nbytes >= 0:
            return PyBytes_FromStringAndSize(message, nbytes)
        if nbytes == ZG_ENDED:
            self._ended = True
            if self._watched:
                PyThread_release_lock(self._gate)
            return None
        PyErr_CheckSignals()
        return b""

    cdef int64_t _sleep(self, int milliseconds) noexcept nogil:
        """Sleep until the host or somebody here has something; ZG_NOTHING where it is the host."""
        cdef pollfd fds[2]
        cdef char bytes[256]
        cdef ssize_t count = 1
        cdef int64_t result = ZG_NOTHING
        if not zr_reader_may_sleep(&self._link.reader):
            return ZG_NOTHING
        fds[0].fd = self._link.input
        fds[1].fd = self._wake_out
        fds[0].events = fds[1].events = POLLIN
        fds[0].revents = fds[1].revents = 0
        self._asleep = True
        if poll(fds, 2, milliseconds) <= 0:
            result = ZG_INTERRUPTED
        elif fds[0].revents:
            count = read(self._link.input, bytes, sizeof(bytes))
        if fds[1].revents:
            result = ZG_INTERRUPTED
            read(self._wake_out, bytes, sizeof(bytes))
        zr_reader_awake(&self._link.reader)
        self._asleep = False
        zr_fence()
        if self._watched:
            self._watched = False
            PyThread_release_lock(self._gate)
        if count == 0 or (count < 0 and errno != EINTR):
            return ZG_NOTHING if zr_is_ready(&self._link.reader) else ZG_ENDED
        return result

    def wake(self):
        """Have the thread that receives return, or the next one; from any thread."""
        try:
            os.write(self._wake_in, b"\0")
        except BlockingIOError:
            pass  # many have called, and nobody has received yet

    def wait_busy(self):
        """Wait until nobody has received for some milliseconds; False once no more will come."""
        cdef uint32_t turn
        with nogil:
            while not self._ended:
                turn = self._turn
                if self._asleep:
                    self._watched = True
                    zr_fence()
                    if self._asleep:
                        PyThread_acquire_lock(self._gate, True)
                    self._watched = False
                    continue
                usleep(BUSY_US)
                if self._turn == turn and not self._inside:
                    break
        return not self._ended

    def send(self, const unsigned char[::1] message not None):
        """Send a message, without a line end. Raises BrokenPipeError when the host has gone."""
        cdef const unsigned char *bytes = &message[0] if message.shape[0] else NULL
        cdef uint64_t left = message.shape[0]
        cdef int64_t count = -1
        cdef int64_t woken = 0
        while left or count < 0:
            with nogil:
                count = zr_push_some(&self._link.writer, bytes, left, 0)
                if zr_must_wake_reader(&self._link.writer):
                    woken = zg_write(&self._link, b"\n", 1)
            if count >= 0:
                bytes += count
                left -= <uint64_t> count
            elif count != ZR_FULL or self._ended:
                woken = -1
            else:
                time.sleep(NAP)
            if woken < 0:
                raise BrokenPipeError("the host has gone")

    @property
    def has_arena(self):
        """Whether bytes may go through shared memory."""
        return zg_offers_arena(&self._link) != 0

    @property
    def has_buffers(self):
        """Whether the host may send buffers of its own."""
        return zg_offers_buffers(&self._link) != 0

    def bytes_at(self, uint64_t offset, uint64_t nbytes, uint64_t id=0):
        """Return a view of bytes that a request has sent; good until it is answered.

        Args:
            id: Of the buffer that they lie in; 0 for the arena.

        Raises ValueError where there are none.
        """
        cdef void *data
        cdef SentBytes sent
        if id:
            data = zg_buffer_bytes(&self._link, id, offset, nbytes)
        else:
            data = zg_bytes(&self._link, offset, nbytes)
        if data is NULL:
            raise ValueError(f"no {nbytes} bytes are at {offset}")
        sent = SentBytes.__new__(SentBytes)
        sent._ring = self
        sent._data = data
        sent._nbytes = nbytes
        sent._id = id
        if id:
            self._views[id] = self._views.get(id, 0) + 1
        return memoryview(sent)

    def forget(self, uint64_t id):
        """Let go of a buffer that the host has no more, once there is no view of it any more."""
        if id in self._views:
            self._forgotten.add(id)
        else:
            zg_forget_buffer(&self._link, id)

    cdef int _view_is_gone(self, uint64_t id) except -1:
        self._views[id] -= 1
        if not self._views[id]:
            del self._views[id]
            if id in self._forgotten:
                self._forgotten.discard(id)
                zg_forget_buffer(&self._link, id)
        return 0

    def put(self, const unsigned char[::1] flat not None):
        """Let the host find bytes; return what it finds them by.

        They are copied, unless they lie in a buffer of the host's. None where there is no room.
        """
        cdef uint64_t offset = 0
        cdef Py_ssize_t nbytes = flat.shape[0]
        cdef zg_buffer *buffer
        cdef size_t index
        for index in range(self._link.buffer_count if nbytes else 0):
            buffer = self._link.buffers + index
            if buffer.base <= &flat[0] < buffer.base + buffer.size:
                return [&flat[0] - buffer.base, nbytes, buffer.id]
        cdef void *data = zg_new_bytes(&self._link, nbytes, &offset)
        if data is NULL:
            return None
        if nbytes:
            with nogil:
                memcpy(data, &flat[0], nbytes)
        return [offset, nbytes]

    def __dealloc__(self):
        if self._views is None:  # it was given no descriptors, and has opened none
            return
        zg_close(&self._link)
        if self._gate is not NULL:
            PyThread_free_lock(self._gate)
        for fd in (self._wake_in, self._wake_out):
            if fd >= 0:
                os.close(fd)


@cython.final
cdef class SentBytes:
    """Bytes of a request, in the host's arena or in a buffer of its own."""

    cdef GuestRing _ring
    cdef void *_data
    cdef Py_ssize_t _nbytes
    cdef uint64_t _id

    def __dealloc__(self):
        if self._id and self._ring is not None:
            self._ring._view_is_gone(self._id)

    def __getbuffer__(self, Py_buffer *buffer, int flags):
        PyBuffer_FillInfo(buffer, self, self._data, self._nbytes, False, flags)

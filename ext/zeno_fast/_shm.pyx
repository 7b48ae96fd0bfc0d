"""The memory that a host shares with its sidecars; see zeno_shm.h for what is where."""

cimport cython
from cpython.buffer cimport PyBuffer_FillInfo
from libc.errno cimport errno
from libc.stdint cimport uint32_t, uint64_t

import bisect
import itertools
import os
import time
import weakref
from collections import deque

from zeno_fast.binary_values import element_type

cdef enum:
    ALIGNMENT = 64


@cython.final
cdef class Segment:
    """Memory that one sidecar may inherit; mapped for as long as anything refers to it.

    Args:
        ring_size: Bytes of each of the two rings, a power of two.
        arena_size: Bytes of the arena for what the guest writes; taken up where written to only.

    Raises OSError where the system has no memory that can be shared.
    """

    def __cinit__(self, uint32_t ring_size, uint64_t arena_size=0):
        self.segment.base = NULL
        self.segment.handle = -1
        self.given = weakref.WeakValueDictionary()
        if ring_size < ZR_MIN_SIZE or ring_size > ZR_MAX_SIZE or ring_size & (ring_size - 1):
            raise ValueError(f"a ring of {ring_size} bytes: a power of two is needed")
        if zs_create(&self.segment, ring_size, arena_size) < 0:
            raise OSError(errno, os.strerror(errno))

    @property
    def fd(self):
        """The descriptor to be inherited, or -1 once it was closed."""
        return self.segment.handle

    @property
    def announcement(self):
        """What the sidecar finds in ZENO_SHM."""
        return f"{self.segment.handle}:{self.segment.size}"

    def close_fd(self):
        """Close the descriptor; the memory stays mapped. Idempotent."""
        cdef int fd = self.segment.handle
        if fd >= 0:
            self.segment.handle = -1
            os.close(fd)

    cdef object view(self, object place, object dtype, object shape):
        """Return a memoryview of a block that the guest has sent; what it says is checked.

        Raises ValueError for a block that cannot be.
        """
        cdef uint64_t begin = self.segment.header.arena
        cdef uint64_t end = begin + self.segment.header.arena_size
        cdef SharedBytes shared
        if type(place) is list and len(place) == 3:
            return element_type(self._in_buffer(place[0], place[1], place[2]), dtype, shape)
        if type(place) is not list or len(place) != 2:
            raise ValueError("not an offset and a size")
        offset, nbytes = place
        if (type(offset) is not int or type(nbytes) is not int or offset % ALIGNMENT
                or not begin + ALIGNMENT <= offset <= end or not 0 <= nbytes <= end - offset):
            raise ValueError(f"no block of {nbytes!r} bytes is at {offset!r}")
        shared = SharedBytes.__new__(SharedBytes)
        shared._segment = self
        shared._data = <char *> self.segment.base + <uint64_t> offset
        shared._nbytes = nbytes
        return element_type(memoryview(shared), dtype, shape)

    cdef object _in_buffer(self, object offset, object nbytes, object id):
        """Return a view into a buffer that the guest was given."""
        buffer = self.given.get(id) if type(id) is int else None
        if buffer is None:
            raise ValueError(f"it was never given a buffer {id!r}")
        if (type(offset) is not int or type(nbytes) is not int
                or not 0 <= offset <= buffer.nbytes or not 0 <= nbytes <= buffer.nbytes - offset):
            raise ValueError(f"no {nbytes!r} bytes are at {offset!r} of buffer {id}")
        return memoryview(buffer)[offset:offset + nbytes]

    def __dealloc__(self):
        zs_close(&self.segment)


@cython.final
cdef class SharedBytes:
    """A block of the guest's, which is the guest's again once nobody refers to it."""

    cdef Segment _segment
    cdef char *_data
    cdef Py_ssize_t _nbytes

    def __getbuffer__(self, Py_buffer *buffer, int flags):
        PyBuffer_FillInfo(buffer, self, self._data, self._nbytes, False, flags)

    def __dealloc__(self):
        if self._data is not NULL:
            zr_store32(<uint32_t *> (self._data - ZS_BLOCK_HEADER), 0)


cdef char *map_or_close(int fd, uint64_t nbytes) except NULL:
    """Map memory, or close its descriptor and raise OSError."""
    cdef char *base = <char *> zs_map(fd, nbytes)
    cdef int problem = errno
    if base is NULL:
        os.close(fd)
        raise OSError(problem, os.strerror(problem))
    return base


# Every buffer that there is, by where it begins.
cdef list _begins = []
cdef list _buffers = []  # weak references
cdef object _ids = itertools.count(1)


@cython.final
cdef class Buffer:
    """Memory of its own that any plugin can be given: `PluginManager.buffer` returns one.

    It has the buffer protocol: fill it through `memoryview(buffer)`, `file.readinto(buffer)` or
    `numpy.frombuffer(buffer, dtype)`. It, and any view of it or of a part, goes to a plugin that
    shares memory without a copy, and the plugin may write to it. It is given back once nobody
    refers to it.

    Args:
        nbytes: Its size.

    Raises OSError where the system has no memory that can be shared.
    """

    def __cinit__(self, Py_ssize_t nbytes):
        cdef Py_ssize_t index
        if nbytes < 0:
            raise ValueError(f"a buffer of {nbytes} bytes")
        self.fd = zs_make(max(1, nbytes))
        if self.fd < 0:
            raise OSError(errno, os.strerror(errno))
        self._base = map_or_close(self.fd, max(1, nbytes))
        self.nbytes = nbytes
        self.id = next(_ids)
        index = bisect.bisect(_begins, <uint64_t> self._base)
        _begins.insert(index, <uint64_t> self._base)
        _buffers.insert(index, weakref.ref(self))

    def __len__(self):
        return self.nbytes

    def __getbuffer__(self, Py_buffer *buffer, int flags):
        PyBuffer_FillInfo(buffer, self, self._base, self.nbytes, False, flags)

    def __dealloc__(self):
        cdef Py_ssize_t index
        if self.nbytes or self.id:
            index = bisect.bisect_left(_begins, <uint64_t> self._base)
            if index < len(_begins) and _begins[index] == <uint64_t> self._base:
                del _begins[index], _buffers[index]
        if self._base is not NULL:  # otherwise the descriptor, too, is none
            zs_unmap(self._base, max(1, self.nbytes))
            os.close(self.fd)


cdef Buffer find_buffer(const char *data, Py_ssize_t nbytes):
    """Return the buffer that these bytes lie in, or None."""
    cdef Py_ssize_t index
    cdef Buffer buffer
    if not _begins:
        return None
    index = bisect.bisect(_begins, <uint64_t> data) - 1
    if index < 0:
        return None
    buffer = _buffers[index]()
    if buffer is None or data + nbytes > buffer._base + buffer.nbytes:
        return None
    return buffer


cdef Buffer buffer_of(uint64_t id):
    """Return a buffer by its id. Raises ValueError where there is none any more."""
    for reference in _buffers:
        buffer = reference()
        if buffer is not None and buffer.id == id:
            return buffer
    raise ValueError(f"there is no buffer {id}")


@cython.final
cdef class Arena:
    """Memory in which the processes of one plugin find the bytes that calls come with.

    Args:
        nbytes: Its size; memory is taken up only where it was written to.

    Raises OSError where the system has no memory that can be shared.
    """

    def __cinit__(self, uint64_t nbytes):
        self.fd = zs_make(nbytes)
        if self.fd < 0:
            raise OSError(errno, os.strerror(errno))
        self.nbytes = nbytes
        self._base = map_or_close(self.fd, nbytes)
        self._offsets = [0]
        self._sizes = [nbytes]
        self._late = deque()

    @property
    def announcement(self):
        """What a sidecar finds in ZENO_ARENA."""
        return f"{self.fd}:{self.nbytes}"

    @property
    def used(self):
        """Bytes that are taken at this moment."""
        return self.nbytes - sum(self._sizes)

    cdef Block take(self, uint64_t nbytes):
        """Return a block, or None where there is no room for it: first fit."""
        cdef Block block
        cdef uint64_t size = max(ALIGNMENT, (nbytes + ALIGNMENT - 1) & ~<uint64_t> (ALIGNMENT - 1))
        cdef Py_ssize_t index
        if self.fd < 0:
            return None
        while self._late and self._late[0][0] < time.monotonic():
            self._late.popleft()
        for index in range(len(self._sizes)):
            if self._sizes[index] >= size:
                break
        else:
            return None
        block = Block.__new__(Block)
        block.offset = self._offsets[index]
        if self._sizes[index] == size:
            del self._offsets[index], self._sizes[index]
        else:
            self._offsets[index] += size
            self._sizes[index] -= size
        block._size = size
        block._arena = self
        return block

    cdef int _give(self, uint64_t offset, uint64_t size) except -1:
        """Take a block back and join it with its free neighbours."""
        cdef Py_ssize_t index = bisect.bisect_left(self._offsets, offset)
        if index < len(self._offsets) and offset + size == self._offsets[index]:
            size += self._sizes[index]
            del self._offsets[index], self._sizes[index]
        if index and self._offsets[index - 1] + self._sizes[index - 1] == offset:
            self._sizes[index - 1] += size
        else:
            self._offsets.insert(index, offset)
            self._sizes.insert(index, size)
        if self.fd < 0:
            self._unmap()
        return 0

    cdef void _unmap(self):
        """Give the memory back if nothing of it is taken."""
        if self._base is not NULL and self._sizes == [self.nbytes]:
            zs_unmap(self._base, self.nbytes)
            self._base = NULL

    def keep_until(self, blocks, when):
        """Keep blocks, which a guest may still look at, until a time on the monotonic clock."""
        self._late.append((when, blocks))

    def read(self, offset, nbytes):
        """Return a copy of bytes that were put there."""
        if self._base is NULL or not 0 <= offset <= offset + nbytes <= self.nbytes:
            raise ValueError("outside of the arena")
        return (<char *> self._base)[offset:offset + nbytes]

    def close(self):
        """Let go of the memory, once nothing of it is taken any more. Idempotent."""
        cdef int fd = self.fd
        if fd >= 0:
            self.fd = -1  # first: another thread may close it, too
            os.close(fd)
            self._late.clear()
            self._unmap()

    def __dealloc__(self):
        if self._base is not NULL:
            zs_unmap(self._base, self.nbytes)
            if self.fd >= 0:
                os.close(self.fd)


@cython.final
cdef class Block:
    """A part of an arena, given back once nobody refers to it."""

    cdef char *data(self) noexcept:
        return self._arena._base + self.offset

    def __dealloc__(self):
        if self._arena is not None:
            self._arena._give(self.offset, self._size)

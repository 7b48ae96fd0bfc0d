from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t

cdef extern from "zeno_shm.h" nogil:
    const int ZR_MORE, ZR_EMPTY, ZR_FULL, ZR_CORRUPT, ZR_MIN_SIZE, ZR_MAX_SIZE, ZS_BLOCK_HEADER
    ctypedef struct zr_writer:
        uint64_t size
        uint64_t head
    ctypedef struct zr_reader:
        uint64_t size
        uint64_t head
        uint64_t tail
    ctypedef struct zs_header:
        uint32_t ring_size
        uint64_t arena
        uint64_t arena_size
    ctypedef struct zs_segment:
        uint8_t *base
        uint64_t size
        int handle
        zs_header header
    void zr_pause()
    void zr_fence()
    void zr_publish(zr_writer *writer)
    int64_t zr_put_some(zr_writer *writer, const void *bytes, uint64_t nbytes, uint32_t flags)
    int64_t zr_push_some(zr_writer *writer, const void *bytes, uint64_t nbytes, uint32_t flags)
    int64_t zr_room(zr_writer *writer, uint64_t wanted)
    uint64_t zr_wanted(const zr_writer *writer, uint64_t nbytes)
    int zr_must_wake_reader(zr_writer *writer)
    int zr_writer_may_sleep(zr_writer *writer, uint64_t wanted)
    int64_t zr_next(zr_reader *reader, uint32_t *flags)
    void zr_take(zr_reader *reader, void *to, uint32_t nbytes)
    int zr_is_ready(const zr_reader *reader)
    int zr_reader_rests(zr_reader *reader)
    int zr_reader_may_sleep(zr_reader *reader)
    void zr_reader_awake(zr_reader *reader)
    int zr_must_wake_writer(zr_reader *reader)
    int zs_create(zs_segment *segment, uint32_t ring_size, uint64_t arena_size)
    int zs_make(uint64_t size)
    void *zs_map(int fd, uint64_t size)
    void zs_unmap(void *base, uint64_t size)
    void zr_store32(uint32_t *at, uint32_t value)
    int zs_attach(zs_segment *segment, const char *announced)
    void zs_close(zs_segment *segment)
    int zs_open_rings(zs_segment *segment, int is_host, zr_reader *reader, zr_writer *writer)

cdef class Segment:
    cdef zs_segment segment
    cdef readonly object given  # buffers that the sidecar has, by their ids, while anybody has them
    cdef object view(self, object place, object dtype, object shape)
    cdef object _in_buffer(self, object offset, object nbytes, object id)

cdef class Arena:
    cdef char *_base
    cdef readonly uint64_t nbytes
    cdef readonly int fd
    cdef list _offsets  # of what is free, ascending
    cdef list _sizes
    cdef object _late
    cdef Block take(self, uint64_t nbytes)
    cdef int _give(self, uint64_t offset, uint64_t size) except -1
    cdef void _unmap(self)

cdef class Buffer:
    cdef char *_base
    cdef readonly Py_ssize_t nbytes
    cdef readonly int fd
    cdef readonly uint64_t id
    cdef object __weakref__

cdef Buffer buffer_of(uint64_t id)
cdef Buffer find_buffer(const char *data, Py_ssize_t nbytes)

cdef class Block:
    cdef Arena _arena
    cdef readonly uint64_t offset
    cdef uint64_t _size
    cdef char *data(self) noexcept

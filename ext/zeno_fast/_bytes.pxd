from zeno_fast._shm cimport Arena, Segment

cdef enum:
    MAX_DEPTH = 254  # what orjson encodes

cdef str RESERVED

cdef class BinaryWay:
    cdef public Arena arena
    cdef public bint arrays
    cdef public object give
    cdef list blocks

cdef class BinarySink:
    cdef BinaryWay _way
    cdef set _lists
    cdef Py_ssize_t put_count
    cdef list blocks
    cdef object _put(self, object value, object view)

cdef object take_bytes(dict message, str plugin, str slot, Segment segment)
cdef int release_blocks(dict message, Segment segment) except -1
cdef object read_back(object value, Arena arena)
cdef bint is_plain(bytes payload, Py_ssize_t places) noexcept

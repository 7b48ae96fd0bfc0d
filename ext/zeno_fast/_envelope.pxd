from zeno_fast._shm cimport Arena, Segment

cdef bytes NO_PARAMETERS

cdef class InputCheck:
    cdef readonly str slot
    cdef readonly str plugin
    cdef tuple _names
    cdef frozenset _declared
    cdef tuple _inputs
    cdef list _kinds
    cdef list _defaults
    cdef bint _trivial
    cdef dict check(self, object parameters)

cdef class BinaryWay:
    cdef public Arena arena
    cdef public bint arrays
    cdef public object give
    cdef list blocks

cdef class BinarySink:
    cdef BinaryWay _way
    cdef set _lists
    cdef Py_ssize_t _put_count
    cdef list blocks
    cdef object _put(self, object value, object view)

cdef bytes dump_parameters(object parameters, InputCheck check, BinaryWay way=*)
cdef object take_data(dict message, str plugin, str slot, Segment segment=*)
cdef object take_bytes(dict message, str plugin, str slot, Segment segment)
cdef int release_blocks(dict message, Segment segment) except -1
cdef object decode(const char *text, Py_ssize_t nbytes)
cdef bytes with_context(bytes payload)

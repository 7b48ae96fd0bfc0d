from zeno_fast._bytes cimport BinaryWay
from zeno_fast._shm cimport Segment

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

cdef bytes dump_parameters(object parameters, InputCheck check, BinaryWay way=*)
cdef object take_data(dict message, str plugin, str slot, Segment segment=*)
cdef object decode(const char *text, Py_ssize_t nbytes)
cdef bytes with_context(bytes payload)

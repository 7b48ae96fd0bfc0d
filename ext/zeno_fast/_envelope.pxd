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

cpdef bytes dump_parameters(object parameters, str plugin, str slot)
cdef object take_data(dict message, str plugin, str slot)
cdef object decode(const char *text, Py_ssize_t nbytes)
cdef bytes with_context(bytes payload)

"""What a slot call inherits from the host call that it is made in."""

from cpython.object cimport PyObject
from libc.stdint cimport int64_t

import zeno_fast.host.context

cdef extern from "Python.h":
    int PyContextVar_Get(object var, PyObject *default_value, PyObject **value) except -1
    void Py_DECREF(PyObject *object)

cdef object _current = zeno_fast.host.context.CURRENT


cdef object current_host_call():
    """Return the HostCall that the running code works on, or None."""
    cdef PyObject *found = NULL
    PyContextVar_Get(_current, NULL, &found)  # it has a default, so there is one
    current = <object> found
    Py_DECREF(found)
    return current


cdef int64_t inherited(int64_t deadline_ns) except? -1:
    """Return a deadline, or that of the host call which the running code works on if sooner."""
    current = current_host_call()
    if current is None or current.deadline_ns is None:
        return deadline_ns
    return min(deadline_ns, <int64_t> current.deadline_ns)

"""The calls that a sidecar has and has not answered, by the numbers in their ids."""

cimport cython
from cpython.list cimport PyList_GET_ITEM
from cpython.object cimport PyObject
from libc.stdint cimport uint64_t

from zeno_fast._call cimport Call

cdef enum:
    PLACES = 512  # a power of two, above what is usually pending at once


@cython.final
cdef class PendingCalls:
    """Calls by number: a table, for numbers that are close together, before a dict.

    A call's place in the table is its number modulo the table's length. As numbers count up, a
    place is taken only where a call has waited while hundreds came: the later one is in the dict.

    Attributes:
        count: How many calls there are.
    """

    def __cinit__(self):
        self._table = [None] * PLACES
        self._others = {}

    cdef int add(self, Call call) except -1:
        cdef Py_ssize_t place = call.number & (PLACES - 1)
        if PyList_GET_ITEM(self._table, place) is not <PyObject *> None:
            self._others[call.number] = call
        else:
            self._table[place] = call
        self._last = call.number
        self.count += 1
        return 0

    cdef Call get(self, uint64_t number):
        """Return the call with this number, or None."""
        cdef PyObject *found = PyList_GET_ITEM(self._table, number & (PLACES - 1))
        if found is not <PyObject *> None and (<Call> found).number == number:
            return <Call> found
        return self._others.get(number) if self._others else None

    cdef Call take(self, uint64_t number):
        """Remove the call with this number and return it, or None where there is none."""
        cdef Call call = self.get(number)
        cdef Py_ssize_t place = number & (PLACES - 1)
        if call is None:
            return None
        if PyList_GET_ITEM(self._table, place) is <PyObject *> call:
            self._table[place] = None
        else:
            del self._others[number]
        self.count -= 1
        return call

    cdef Call sole(self):
        """Return the only call, or None where there is none or several."""
        cdef Call call
        if self.count != 1:
            return None
        call = self.get(self._last)
        return self.calls()[0] if call is None else call

    cdef Call take_sole(self):
        """Remove the only call and return it, or None where there is none or several."""
        cdef Call call = self.sole()
        return None if call is None else self.take(call.number)

    cdef list calls(self):
        """Return all calls, those that were sent first in front."""
        cdef Call call
        cdef list found = [call for call in self._table if call is not None]
        found.extend(self._others.values())
        found.sort(key=_number)
        return found


def _number(Call call):
    return call.number

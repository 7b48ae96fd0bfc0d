from libc.stdint cimport int64_t, uint64_t

from zeno_fast._call cimport Call
from zeno_fast._correlator cimport Correlator

cdef class Listener(Correlator):
    cdef bytes _answer_head  # how an answer begins that is spelt as most guests spell it
    cdef bint _answered
    cdef int64_t _framed
    cdef int64_t _header
    cdef bint _strict
    cdef readonly uint64_t noise
    cdef int _take_lines(self) except -1
    cdef int _take_corrupt(self) except -1
    cdef int _take_rest(self) except -1
    cdef int _take_line(self, const char *line, size_t nbytes) except -1
    cdef int _take_parts(self, bytes line, Py_ssize_t stale) except -1
    cdef int _take_long_line(self, const char *line, size_t nbytes) except -1
    cdef bint _take_invalid_answer(self, const char *line, size_t nbytes) except -1
    cdef bint _take_plain_answer(self, const char *line, size_t nbytes) except -1
    cdef int _take_noise(self, bytes text) except -1
    cdef int _take_message(self, dict message, size_t nbytes) except -1
    cdef int _take_chunk(self, dict message, size_t nbytes) except -1
    cdef int _take_response(self, dict message) except -1
    cdef int _drop(self, object number, dict message) except -1

"""What WASM guests print where the library writes it: kept in C until the host takes it."""

cimport cython
from cpython.bytes cimport PyBytes_FromStringAndSize
from libc.stddef cimport size_t
from libc.stdint cimport uintptr_t
from libc.stdlib cimport free

cdef extern from "zeno_output.h" nogil:
    ctypedef struct zo_output:
        pass
    ctypedef Py_ssize_t zo_ssize
    zo_output *zo_new() noexcept
    void zo_retain(zo_output *output) noexcept
    void zo_release(void *output) noexcept
    zo_ssize zo_write(void *output, const unsigned char *text, size_t nbytes) noexcept
    char *zo_take(zo_output *output, size_t *nbytes, size_t *lost) noexcept

# Addresses of C functions, as the library's `wasi_config_set_stdout_custom` wants them: one that
# writes, (data, bytes, their number) -> the number taken, and one that lets go of the data.
WRITE = <uintptr_t> &zo_write
RELEASE = <uintptr_t> &zo_release


@cython.final
cdef class GuestOutput:
    """The stdout and the stderr of one guest; any thread may write, one at a time may take."""

    cdef zo_output *_outputs[2]

    def __cinit__(self):
        cdef int stream
        for stream in range(2):
            self._outputs[stream] = zo_new()
            if self._outputs[stream] is NULL:
                raise MemoryError

    def __dealloc__(self):
        cdef int stream
        for stream in range(2):
            if self._outputs[stream] is not NULL:
                zo_release(self._outputs[stream])

    def retain(self, int stream):
        """Return the data for WRITE: stdout is 0, stderr 1. RELEASE has to be called with it."""
        zo_retain(self._outputs[stream & 1])
        return <uintptr_t> self._outputs[stream & 1]

    def take(self, int stream):
        """Return what was written since the last time, and how many bytes before it were lost."""
        cdef size_t nbytes, lost
        cdef char *text = zo_take(self._outputs[stream & 1], &nbytes, &lost)
        if text is NULL:
            return b"", lost
        try:
            return PyBytes_FromStringAndSize(text, nbytes), lost
        finally:
            free(text)

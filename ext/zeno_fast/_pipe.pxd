from libc.stdint cimport int64_t, uint32_t

from zeno_fast._lines cimport LongLine
from zeno_fast._ring_end cimport RingEnd
from zeno_fast._shm cimport Segment

cdef enum:
    READABLE = 1
    WRITABLE = 2
    EXITED = 4

cdef extern from "zeno_blocking_read.h" nogil:
    ctypedef struct zb_reader:
        int fd

cdef uint32_t zb_forks() noexcept

cdef enum:
    AGAIN = -1
    FAILED = -2
    NO_MEMORY = -3
    INTERRUPTED = -4

cdef class Pipe:
    cdef readonly int read_fd
    cdef readonly int write_fd
    cdef readonly int exit_fd
    cdef int _wake_in
    cdef int _wake_out
    cdef char *_buffer
    cdef size_t _capacity
    cdef size_t _start
    cdef size_t _end
    cdef size_t _scanned
    cdef LongLine _long  # of stdout
    cdef const char *_long_end
    cdef readonly size_t max_line
    cdef size_t long_nbytes  # of the last line above the limit
    cdef zb_reader _reader
    cdef int _marks  # tokens that are to come with what is read
    cdef bint _alone
    cdef int _most_awake  # threads of this process, at the same time
    cdef bint _widened
    cdef int _misses
    cdef int _skip
    cdef readonly bint shared  # messages go through shared memory, and stdout has only noise
    cdef RingEnd ring  # or None
    cdef bint _stirred  # there was something on stdout
    cdef unsigned int _turns
    cdef int64_t _typical_ns  # that a guest which is awake takes to answer
    cdef Py_ssize_t fill(self) noexcept nogil
    cdef Py_ssize_t fill_soon(self, int64_t left_ns) noexcept nogil
    cdef Py_ssize_t spin(self) noexcept nogil
    cdef Py_ssize_t _fill_lines(self) noexcept nogil
    cdef Py_ssize_t _missed(self, int most) noexcept nogil
    cdef Py_ssize_t _wait_awake(self, int64_t most_ns) noexcept nogil
    cdef Py_ssize_t _spin_shared(self, int64_t most_ns) noexcept nogil
    cdef Py_ssize_t _yield_to_guest(self, int64_t most_ns) noexcept nogil
    cdef bint _was_woken(self) noexcept nogil
    cdef Py_ssize_t _block(self) noexcept nogil
    cdef int _make_room(self) noexcept nogil
    cdef Py_ssize_t _without_marks(self, Py_ssize_t count) noexcept nogil
    cdef Segment segment(self)
    cdef bint rest(self) noexcept nogil
    cdef bytes long_end(self)
    cdef Py_ssize_t buffered(self) noexcept nogil
    cdef int next_line(self, const char **line, size_t *nbytes) noexcept nogil
    cdef int _cut(self, LongLine *kept, const char **line, size_t *nbytes) noexcept nogil
    cdef int take_rest(self, const char **text, size_t *nbytes) noexcept nogil
    cdef void relax(self) noexcept nogil
    cdef int wait(self, int interest, int64_t deadline_ns) noexcept nogil
    cdef void wake(self) noexcept nogil

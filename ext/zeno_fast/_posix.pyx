"""What the hot path asks of the system itself: the clock, writes, and wider pipes."""

from libc.errno cimport EINTR, EPIPE, errno
from libc.signal cimport SIGPIPE
from libc.stdint cimport int64_t

cdef extern from "<unistd.h>" nogil:
    ssize_t write(int fd, const void *buf, size_t count)

cdef extern from "<time.h>" nogil:
    struct timespec:
        long tv_sec
        long tv_nsec
    int clock_gettime(int clock, timespec *now)
    int CLOCK_MONOTONIC

cdef extern from "<signal.h>" nogil:
    ctypedef struct sigset_t:
        pass
    int sigemptyset(sigset_t *signals)
    int sigaddset(sigset_t *signals, int number)
    int sigismember(const sigset_t *signals, int number)
    int sigpending(sigset_t *signals)
    int pthread_sigmask(int how, const sigset_t *signals, sigset_t *before)
    int sigtimedwait(const sigset_t *signals, void *info, const timespec *timeout)
    int SIG_BLOCK, SIG_SETMASK

cdef extern from * nogil:
    """
    #include <signal.h>
    static int sigpipe_ends_us(void)
    {
        struct sigaction action;
        return sigaction(SIGPIPE, NULL, &action) != 0 || action.sa_handler == SIG_DFL;
    }
    """
    int sigpipe_ends_us()

cdef extern from * nogil:
    """
    #include <fcntl.h>
    #ifndef F_SETPIPE_SZ
    #define F_SETPIPE_SZ 0
    #endif
    """
    int F_SETPIPE_SZ
    int fcntl(int fd, int command, int argument)

cdef size_t WIDE_PIPE = 512 * 1024  # what a pipe is made to hold for larger messages


cdef int64_t monotonic_ns() noexcept nogil:
    """Read the clock of time.monotonic_ns."""
    cdef timespec now
    clock_gettime(CLOCK_MONOTONIC, &now)
    return <int64_t> now.tv_sec * 1000000000 + now.tv_nsec


cdef void widen(int fd) noexcept nogil:
    """Let a pipe hold more, for large messages, where the system allows it."""
    if F_SETPIPE_SZ:
        fcntl(fd, F_SETPIPE_SZ, <int> WIDE_PIPE)


cdef void write_byte(int fd, char byte) noexcept nogil:
    """Write one byte to a pipe whose reader may have gone; a full one does without."""
    cdef int error = 0
    if sigpipe_ends_us():
        write_unkilled(fd, &byte, 1, &error)
    else:
        write_once(fd, &byte, 1, &error)


cdef Py_ssize_t write_unkilled(
    int fd, const char *data, size_t nbytes, int *error
) noexcept nogil:
    """Write once in a program that SIGPIPE ends, as those that write to a pager want it to."""
    cdef sigset_t pipe, before, pending
    cdef timespec now
    cdef Py_ssize_t sent
    cdef bint was_pending
    sigemptyset(&pipe)
    sigaddset(&pipe, SIGPIPE)
    sigpending(&pending)
    was_pending = sigismember(&pending, SIGPIPE) == 1
    pthread_sigmask(SIG_BLOCK, &pipe, &before)
    sent = write_once(fd, data, nbytes, error)
    if sent < 0 and error[0] == EPIPE and not was_pending:
        now.tv_sec = now.tv_nsec = 0
        while sigtimedwait(&pipe, NULL, &now) < 0 and errno == EINTR:
            pass
    pthread_sigmask(SIG_SETMASK, &before, NULL)
    return sent


cdef Py_ssize_t write_once(int fd, const char *data, size_t nbytes, int *error) noexcept nogil:
    cdef ssize_t sent
    while True:
        sent = write(fd, data, nbytes)
        if sent >= 0:
            return sent
        error[0] = errno
        if error[0] != EINTR:
            return -1

/* Preloaded into a host process: counts its system calls, lets those on pipes fail as they may, and
 * shifts its wall clock.
 *
 * Nothing happens before one of the shim_ functions says so. Only pipes are disturbed, and only as
 * they may be: EAGAIN where the descriptor is non-blocking, and a write that is as short as a wake
 * or a mark of zeno_blocking_read.h is taken whole, for only a full pipe would not.
 */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif

#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <sched.h>
#include <stdint.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

/* As the libraries of the process were compiled, some calls come by these names. */
ssize_t __read_chk(int fd, void *buffer, size_t nbytes, size_t capacity);
int __poll_chk(struct pollfd *fds, nfds_t count, int timeout, size_t nbytes);

enum { COUNT_READ, COUNT_WRITE, COUNT_POLL, COUNT_YIELD, COUNTS };
enum { FAULT_EINTR, FAULT_EAGAIN, FAULT_SHORT_READ, FAULT_SHORT_WRITE, FAULTS };
enum { WHOLE = 16 }; /* bytes of a write up to which it is neither cut nor refused */

static uint64_t counts[COUNTS];
static uint64_t injected[FAULTS];
static uint64_t random_state;
static uint32_t kinds;   /* bit (1 << FAULT_...) */
static uint32_t percent; /* of the calls in which each of the kinds is tried */
static int64_t shift;    /* seconds */

void shim_reset(void);
uint64_t shim_count(int which);
uint64_t shim_injected(int kind);
void shim_inject(uint32_t wanted, uint32_t rate, uint64_t seed);
void shim_shift_clock(int64_t seconds);

void shim_reset(void)
{
    for (int i = 0; i < COUNTS; i++)
        __atomic_store_n(&counts[i], 0, __ATOMIC_RELAXED);
    for (int i = 0; i < FAULTS; i++)
        __atomic_store_n(&injected[i], 0, __ATOMIC_RELAXED);
}

uint64_t shim_count(int which)
{
    return __atomic_load_n(&counts[which], __ATOMIC_RELAXED);
}

uint64_t shim_injected(int kind)
{
    return __atomic_load_n(&injected[kind], __ATOMIC_RELAXED);
}

void shim_inject(uint32_t wanted, uint32_t rate, uint64_t seed)
{
    __atomic_store_n(&random_state, seed, __ATOMIC_RELAXED);
    __atomic_store_n(&percent, rate, __ATOMIC_RELAXED);
    __atomic_store_n(&kinds, wanted, __ATOMIC_RELEASE);
}

void shim_shift_clock(int64_t seconds)
{
    __atomic_store_n(&shift, seconds, __ATOMIC_RELAXED);
}

/* splitmix64, whose state is one number that any thread can step. */
static uint64_t next_random(void)
{
    uint64_t z =
        __atomic_add_fetch(&random_state, UINT64_C(0x9e3779b97f4a7c15), __ATOMIC_RELAXED);

    z = (z ^ (z >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
    z = (z ^ (z >> 27)) * UINT64_C(0x94d049bb133111eb);
    return z ^ (z >> 31);
}

static void counted(int which)
{
    __atomic_add_fetch(&counts[which], 1, __ATOMIC_RELAXED);
}

static int is_pipe(int fd)
{
    const int before = errno;
    struct stat found;
    const int answer = fstat(fd, &found) == 0 && S_ISFIFO(found.st_mode);

    errno = before;
    return answer;
}

static int is_nonblocking(int fd)
{
    const int flags = fcntl(fd, F_GETFL);

    return flags >= 0 && (flags & O_NONBLOCK);
}

/* Tell whether this fault strikes now, and count it. */
static int strikes(int kind)
{
    if (!(__atomic_load_n(&kinds, __ATOMIC_ACQUIRE) & (UINT32_C(1) << kind)))
        return 0;
    if (next_random() % 100 >= __atomic_load_n(&percent, __ATOMIC_RELAXED))
        return 0;
    __atomic_add_fetch(&injected[kind], 1, __ATOMIC_RELAXED);
    return 1;
}

/* Fail a call on a pipe with EINTR or EAGAIN, or let it be; returns 0 or -1. */
static int fails(int fd, int may_refuse)
{
    if (strikes(FAULT_EINTR)) {
        errno = EINTR;
        return -1;
    }
    if (may_refuse && is_nonblocking(fd) && strikes(FAULT_EAGAIN)) {
        errno = EAGAIN;
        return -1;
    }
    return 0;
}

/* The next library's function; ISO C has no cast from an object pointer to one of a function. */
#define NEXT(pointer, name) \
    if (!(pointer))         \
    *(void **)&(pointer) = dlsym(RTLD_NEXT, name)

ssize_t read(int fd, void *buffer, size_t nbytes)
{
    static ssize_t (*next)(int, void *, size_t);

    NEXT(next, "read");
    if (!is_pipe(fd))
        return next(fd, buffer, nbytes);
    counted(COUNT_READ);
    if (fails(fd, 1))
        return -1;
    if (nbytes > 1 && strikes(FAULT_SHORT_READ))
        nbytes = 1 + (size_t)(next_random() % (next_random() & 1 ? 1 : 32));
    return next(fd, buffer, nbytes);
}

ssize_t write(int fd, const void *buffer, size_t nbytes)
{
    static ssize_t (*next)(int, const void *, size_t);

    NEXT(next, "write");
    if (!is_pipe(fd))
        return next(fd, buffer, nbytes);
    counted(COUNT_WRITE);
    if (fails(fd, nbytes > WHOLE))
        return -1;
    if (nbytes > WHOLE && strikes(FAULT_SHORT_WRITE))
        nbytes = 1 + (size_t)(next_random() % (next_random() & 1 ? 1 : nbytes));
    return next(fd, buffer, nbytes);
}

int poll(struct pollfd *fds, nfds_t count, int timeout)
{
    static int (*next)(struct pollfd *, nfds_t, int);

    NEXT(next, "poll");
    counted(COUNT_POLL);
    if (strikes(FAULT_EINTR)) {
        errno = EINTR;
        return -1;
    }
    return next(fds, count, timeout);
}

int sched_yield(void)
{
    static int (*next)(void);

    NEXT(next, "sched_yield");
    counted(COUNT_YIELD);
    return next();
}

ssize_t __read_chk(int fd, void *buffer, size_t nbytes, size_t capacity)
{
    return read(fd, buffer, nbytes < capacity ? nbytes : capacity);
}

int __poll_chk(struct pollfd *fds, nfds_t count, int timeout, size_t nbytes)
{
    (void)nbytes;
    return poll(fds, count, timeout);
}

int clock_gettime(clockid_t clock, struct timespec *now)
{
    static int (*next)(clockid_t, struct timespec *);
    int status;

    NEXT(next, "clock_gettime");
    status = next(clock, now);
    if (status == 0 && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE))
        now->tv_sec += (time_t)__atomic_load_n(&shift, __ATOMIC_RELAXED);
    return status;
}

int gettimeofday(struct timeval *restrict now, void *restrict zone)
{
    struct timespec precise;

    (void)zone;
    if (clock_gettime(CLOCK_REALTIME, &precise) != 0)
        return -1;
    now->tv_sec = precise.tv_sec;
    now->tv_usec = (suseconds_t)(precise.tv_nsec / 1000);
    return 0;
}

time_t time(time_t *now)
{
    struct timespec precise;

    if (clock_gettime(CLOCK_REALTIME, &precise) != 0)
        return (time_t)-1;
    if (now)
        *now = precise.tv_sec;
    return precise.tv_sec;
}

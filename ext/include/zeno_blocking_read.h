/* zeno_blocking_read.h - a blocking read of a pipe that another thread can end.
 *
 * A blocking read is the cheapest way to wait for a pipe: one system call, where poll and read are
 * two. But it knows no deadline, and no other thread can wake it. Here both are made up for by
 * putting a mark into the pipe itself: a random token, written at once (it is shorter than
 * PIPE_BUF) through a write end that is opened for just that moment, so that the end of input still
 * shows. The reader takes the token out again; nobody else knows it or ever sees it.
 *
 * A patrol thread ends each read that has lasted for ZB_PATIENCE_NS, after which the reader waits in
 * another way, with its deadline. The thread sleeps while nothing is read.
 *
 * Linux, with /proc mounted: elsewhere zb_open fails. In a forked child
 * every reader that was open is refused by zb_read.
 */
#ifndef ZENO_BLOCKING_READ_H
#define ZENO_BLOCKING_READ_H

#include <errno.h>
#include <stdint.h>
#include <sys/types.h>

enum { ZB_TOKEN_SIZE = 16 };

enum { ZB_IDLE = 0, ZB_BLOCKED = 1, ZB_ENDING = 2, ZB_MARKED = 3 };

typedef struct zb_reader {
    int fd;         /* a blocking description of the pipe's read end, or -1 */
    uint32_t state; /* only the reader leaves ZB_IDLE, only who ends it leaves ZB_ENDING */
    uint32_t round; /* of the patrol, in which the read began or was last ended */
    uint32_t marks; /* tokens put into the pipe since the read began; guarded by ZB_ENDING */
    uint32_t forks; /* generation of the process that opened it */
    struct zb_reader *next;
} zb_reader;

#ifdef __linux__

#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <time.h>
#include <unistd.h>

#ifdef __cplusplus
extern "C" {
#endif

#define ZB_PATIENCE_NS 2000000L /* one round of the patrol; a read lasts for one or two of them */
#define ZB_IDLE_ROUNDS 50       /* without a read, after which the patrol goes to sleep */

typedef struct zb_patrol {
    pthread_mutex_t mutex; /* guards the list, and `started` */
    pthread_cond_t woken;
    zb_reader *readers;
    uint32_t round;
    uint32_t sleeping;
    uint32_t forks;
    int started;
    int prepared;
    int spare; /* a descriptor to let go where the process may have no more of them, or -1 */
    unsigned char token[ZB_TOKEN_SIZE];
} zb_patrol;

static zb_patrol zb_global = {PTHREAD_MUTEX_INITIALIZER, PTHREAD_COND_INITIALIZER, NULL, 0, 0, 0, 0,
                              0, -1, {0}};

/* Open the pipe of `fd` anew, as a description of its own. Returns a descriptor or -1. */
static inline int zb_reopen(int fd, int flags)
{
    char path[40];
    snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    return open(path, flags | O_CLOEXEC);
}

/* The number of forks since the first reader was opened: whoever finds another one than before is in
 * a child process. */
static inline uint32_t zb_generation(void)
{
    return zb_global.forks;
}

/* End a read whose state is `expected`, with a token that is put into the pipe. */
static inline void zb_mark(zb_reader *reader, uint32_t expected)
{
    uint32_t result = expected;
    ssize_t count;
    int fd;

    if (reader->forks != zb_global.forks) /* in a child: the read is the parent's */
        return;
    if (!__atomic_compare_exchange_n(&reader->state, &expected, (uint32_t)ZB_ENDING, 0,
                                     __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE))
        return;
    fd = zb_reopen(reader->fd, O_WRONLY | O_NONBLOCK);
    if (fd < 0 && zb_global.spare >= 0) { /* the process has no descriptor left but this one */
        close(zb_global.spare);
        fd = zb_reopen(reader->fd, O_WRONLY | O_NONBLOCK);
        zb_global.spare = -1;
    }
    if (fd >= 0) {
        do
            count = write(fd, zb_global.token, ZB_TOKEN_SIZE);
        while (count < 0 && errno == EINTR);
        /* A pipe that is too full for the mark has what the reader waits for. */
        if (count == ZB_TOKEN_SIZE) {
            reader->marks += 1;
            result = ZB_MARKED;
        }
        close(fd);
    }
    if (zb_global.spare < 0) /* it was let go above */
        zb_global.spare = open("/dev/null", O_RDONLY | O_CLOEXEC);
    /* Blocked still, where it could not be: it is tried again in the next round. */
    __atomic_store_n(&reader->state, result, __ATOMIC_RELEASE);
}

/* End a read that is in progress, if one is. Any thread may call this while the reader is open. */
static inline void zb_end(zb_reader *reader)
{
    zb_mark(reader, ZB_BLOCKED);
}

/* One round: end what was being read in an earlier one. Returns whether anything is being read.
 *
 * A read goes on although it was ended where somebody else has read the token: the guest, which can
 * open its own output. It is ended again, every round, so that a hostile one cannot hold the reader.
 */
static inline int zb_walk(void)
{
    int reading = 0;
    int left;
    zb_reader *reader;

    for (reader = zb_global.readers; reader; reader = reader->next) {
        const uint32_t state = __atomic_load_n(&reader->state, __ATOMIC_SEQ_CST);

        if (state != ZB_BLOCKED && state != ZB_MARKED)
            continue;
        reading = 1;
        if (__atomic_load_n(&reader->round, __ATOMIC_RELAXED) == zb_global.round)
            continue;
        if (state == ZB_BLOCKED || (ioctl(reader->fd, FIONREAD, &left) == 0 && left == 0)) {
            zb_mark(reader, state);
            __atomic_store_n(&reader->round, zb_global.round, __ATOMIC_RELAXED);
        }
    }
    return reading;
}

static void *zb_run(void *unused)
{
    int idle = 0;
    sigset_t all;

    (void)unused;
    sigfillset(&all); /* signals are for the threads of the application */
    pthread_sigmask(SIG_SETMASK, &all, NULL);
    pthread_mutex_lock(&zb_global.mutex);
    for (;;) {
        struct timespec until;

        idle = zb_walk() ? 0 : idle + 1;
        __atomic_store_n(&zb_global.round, zb_global.round + 1, __ATOMIC_RELAXED);
        if (idle > ZB_IDLE_ROUNDS) {
            /* Whoever begins to read after this sees it; whoever began before is seen by zb_walk. */
            __atomic_store_n(&zb_global.sleeping, 1, __ATOMIC_SEQ_CST);
            if (!zb_walk())
                pthread_cond_wait(&zb_global.woken, &zb_global.mutex);
            __atomic_store_n(&zb_global.sleeping, 0, __ATOMIC_SEQ_CST);
            idle = 0;
        }
        clock_gettime(CLOCK_MONOTONIC, &until);
        until.tv_nsec += ZB_PATIENCE_NS;
        if (until.tv_nsec >= 1000000000L) {
            until.tv_nsec -= 1000000000L;
            until.tv_sec += 1;
        }
        pthread_cond_timedwait(&zb_global.woken, &zb_global.mutex, &until);
    }
    return NULL;
}

static inline void zb_init_sync(void)
{
    pthread_condattr_t attributes;

    pthread_mutex_init(&zb_global.mutex, NULL);
    pthread_condattr_init(&attributes);
    pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC);
    pthread_cond_init(&zb_global.woken, &attributes);
    pthread_condattr_destroy(&attributes);
}

/* In a forked child: the patrol is gone, its lock may be held for ever, the readers are not ours. */
static void zb_after_fork(void)
{
    zb_init_sync();
    zb_global.readers = NULL;
    zb_global.started = 0;
    zb_global.sleeping = 0;
    zb_global.forks += 1;
}

/* Choose the token, once in a process. Returns 0 or -1. Called with the GIL or before any thread. */
static inline int zb_prepare(void)
{
    size_t index;
    int fd;
    ssize_t count;

    if (zb_global.prepared)
        return 0;
    fd = open("/dev/urandom", O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return -1;
    count = read(fd, zb_global.token, ZB_TOKEN_SIZE);
    close(fd);
    if (count != ZB_TOKEN_SIZE)
        return -1;
    for (index = 0; index < ZB_TOKEN_SIZE; index++)
        if (zb_global.token[index] == '\n')
            zb_global.token[index] = 0; /* a line end within would cut it in two */
    zb_global.spare = open("/dev/null", O_RDONLY | O_CLOEXEC);
    zb_init_sync();
    if (pthread_atfork(NULL, NULL, zb_after_fork) != 0)
        return -1;
    zb_global.prepared = 1;
    return 0;
}

/* Make a reader of the pipe of `fd`, which stays the caller's. Returns 0, or -1 where it cannot be;
 * the reader is then closed. `reader` must not move until zb_close. */
static inline int zb_open(zb_reader *reader, int fd)
{
    pthread_t thread;
    pthread_attr_t attributes;
    int writer;
    int started;

    reader->fd = -1;
    reader->state = ZB_IDLE;
    reader->round = 0;
    reader->marks = 0;
    if (zb_prepare() != 0)
        return -1;
    writer = zb_reopen(fd, O_WRONLY | O_NONBLOCK);
    if (writer < 0)
        return -1; /* a read could not be ended */
    close(writer);
    reader->fd = zb_reopen(fd, O_RDONLY);
    if (reader->fd < 0)
        return -1;
    pthread_mutex_lock(&zb_global.mutex);
    started = zb_global.started;
    if (!started) {
        pthread_attr_init(&attributes);
        pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
        pthread_attr_setstacksize(&attributes, 65536);
        started = pthread_create(&thread, &attributes, zb_run, NULL) == 0;
        pthread_attr_destroy(&attributes);
        zb_global.started = started;
    }
    if (started) {
        reader->forks = zb_global.forks;
        reader->next = zb_global.readers;
        zb_global.readers = reader;
    }
    pthread_mutex_unlock(&zb_global.mutex);
    if (!started) {
        close(reader->fd);
        reader->fd = -1;
        return -1;
    }
    return 0;
}

/* Close a reader; no thread may be in zb_read. Idempotent. */
static inline void zb_close(zb_reader *reader)
{
    zb_reader **link;

    if (reader->fd < 0)
        return;
    if (reader->forks == zb_global.forks) {
        pthread_mutex_lock(&zb_global.mutex);
        for (link = &zb_global.readers; *link; link = &(*link)->next) {
            if (*link == reader) {
                *link = reader->next;
                break;
            }
        }
        pthread_mutex_unlock(&zb_global.mutex);
    }
    close(reader->fd);
    reader->fd = -1;
}

/* Read as read(2) does, for at most two rounds of the patrol. One thread at a time.
 *
 * `*marked` says how many tokens were put into the pipe: each is in what was read, in part or whole,
 * or still comes, unless somebody else has taken it. Returns what read(2) returned, or -1 with ENOTSUP in errno in a forked child.
 */
static inline ssize_t zb_read(zb_reader *reader, void *buffer, size_t nbytes, int *marked)
{
    uint32_t state = ZB_BLOCKED;
    ssize_t count;
    int error;

    *marked = 0;
    if (reader->forks != zb_global.forks) {
        errno = ENOTSUP;
        return -1;
    }
    __atomic_store_n(&reader->round, __atomic_load_n(&zb_global.round, __ATOMIC_RELAXED),
                     __ATOMIC_RELAXED);
    reader->marks = 0;
    __atomic_store_n(&reader->state, (uint32_t)ZB_BLOCKED, __ATOMIC_SEQ_CST);
    if (__atomic_load_n(&zb_global.sleeping, __ATOMIC_SEQ_CST)) {
        pthread_mutex_lock(&zb_global.mutex);
        pthread_cond_signal(&zb_global.woken);
        pthread_mutex_unlock(&zb_global.mutex);
    }
    count = read(reader->fd, buffer, nbytes);
    error = errno;
    while (!__atomic_compare_exchange_n(&reader->state, &state, (uint32_t)ZB_IDLE, 0,
                                        __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE)) {
        while (state == ZB_ENDING) {
            sched_yield();
            state = __atomic_load_n(&reader->state, __ATOMIC_ACQUIRE);
        }
    }
    *marked = (int)reader->marks;
    errno = error;
    return count;
}

/* Find the token in `nbytes` at `data`. Returns its offset, or `nbytes` where it is not whole. */
static inline size_t zb_find_token(const char *data, size_t nbytes)
{
    size_t at = 0;

    while (nbytes >= ZB_TOKEN_SIZE && at <= nbytes - ZB_TOKEN_SIZE) {
        const char *found = (const char *)memchr(data + at, zb_global.token[0],
                                                 nbytes - ZB_TOKEN_SIZE + 1 - at);
        if (!found)
            break;
        if (memcmp(found, zb_global.token, ZB_TOKEN_SIZE) == 0)
            return (size_t)(found - data);
        at = (size_t)(found - data) + 1;
    }
    return nbytes;
}

#ifdef __cplusplus
}
#endif

#else /* elsewhere nothing can be opened, so that the caller waits in its other way */

static inline int zb_open(zb_reader *reader, int fd)
{
    (void)fd;
    reader->fd = -1;
    return -1;
}

static inline uint32_t zb_generation(void)
{
    return 0;
}

static inline void zb_close(zb_reader *reader)
{
    (void)reader;
}

static inline void zb_end(zb_reader *reader)
{
    (void)reader;
}

static inline ssize_t zb_read(zb_reader *reader, void *buffer, size_t nbytes, int *marked)
{
    (void)reader;
    (void)buffer;
    (void)nbytes;
    *marked = 0;
    errno = ENOTSUP;
    return -1;
}

static inline size_t zb_find_token(const char *data, size_t nbytes)
{
    (void)data;
    return nbytes;
}

#endif

#endif

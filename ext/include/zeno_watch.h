/* Watches over calls that have a deadline, for code that is interrupted from outside.
 *
 * One thread sleeps until the earliest due time of all watches and then calls
 * `interrupt` for those that are due, so nothing ticks while calls end in time.
 * C11 and C++17; its thread and its sleep are Python's, so this header is for
 * the host's own extensions, and the thread never touches a Python object.
 */
#ifndef ZENO_WATCH_H
#define ZENO_WATCH_H

#include <Python.h>
#include <pythread.h>
#include <stdint.h>

#if defined(_WIN32)
#include <windows.h>
#else
#include <time.h>
#endif

#define ZW_NEVER INT64_MAX

/* Before 3.11 Python sleeps by the wall clock, which may be set back meanwhile. */
#define ZW_LONGEST_NAP_US 1000000

#if defined(_MSC_VER)
static int64_t zw_load(int64_t *p) { return InterlockedOr64((LONG64 *)p, 0); }
static void zw_store(int64_t *p, int64_t v) { InterlockedExchange64((LONG64 *)p, v); }
static int64_t zw_swap(int64_t *p, int64_t v) { return InterlockedExchange64((LONG64 *)p, v); }
static int zw_replace(int64_t *p, int64_t old, int64_t v)
{
    return InterlockedCompareExchange64((LONG64 *)p, v, old) == old;
}
#else
static inline int64_t zw_load(int64_t *p) { return __atomic_load_n(p, __ATOMIC_SEQ_CST); }
static inline void zw_store(int64_t *p, int64_t v) { __atomic_store_n(p, v, __ATOMIC_RELEASE); }
static inline int64_t zw_swap(int64_t *p, int64_t v)
{
    return __atomic_exchange_n(p, v, __ATOMIC_SEQ_CST);
}
static inline int zw_replace(int64_t *p, int64_t old, int64_t v)
{
    return __atomic_compare_exchange_n(p, &old, v, 0, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);
}
#endif

/* One call that can be running. Never freed, as the ticker may look at it: reused. */
typedef struct zw_watch {
    int64_t due;      /* when to interrupt next; ZW_NEVER while no call runs */
    int64_t deadline; /* of the running call */
    int64_t expired;  /* set by the interrupted side when the deadline ended the call */
    void *engine;     /* what `interrupt` takes */
    void *owner;      /* borrowed; for the interrupted side */
    int in_main_thread;
    struct zw_watch *next;      /* in the list of all, which only grows */
    struct zw_watch *next_free; /* for whoever keeps the unused ones */
} zw_watch;

typedef struct zw_ticker {
    zw_watch *head; /* changed by one thread at a time (the GIL), read by the ticker */
    int64_t next;   /* when the ticker means to wake up; ZW_NEVER while it looks for that time */
    int64_t signalled;
    int64_t stopping;
    PyThread_type_lock wake;
    void (*interrupt)(void *engine);
} zw_ticker;

/* Return monotonic nanoseconds. */
static int64_t zw_now(void)
{
#if defined(_WIN32)
    LARGE_INTEGER count, rate;
    QueryPerformanceCounter(&count);
    QueryPerformanceFrequency(&rate);
    return count.QuadPart / rate.QuadPart * 1000000000 +
           count.QuadPart % rate.QuadPart * 1000000000 / rate.QuadPart;
#else
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
#endif
}

/* Add a watch; the caller holds the GIL. */
static void zw_add(zw_ticker *ticker, zw_watch *watch)
{
    watch->due = ZW_NEVER;
    watch->next = ticker->head;
#if defined(_MSC_VER)
    InterlockedExchangePointer((void **)&ticker->head, watch);
#else
    __atomic_store_n(&ticker->head, watch, __ATOMIC_RELEASE);
#endif
}

static void zw_wake(zw_ticker *ticker)
{
    if (zw_swap(&ticker->signalled, 1) == 0)
        PyThread_release_lock(ticker->wake);
}

/* Have `interrupt` called at `due`; from any thread.
 *
 * The due time is stored before the ticker's own plan is read, and the ticker
 * withdraws its plan before it reads due times: one of the two sees the other.
 */
static void zw_arm(zw_ticker *ticker, zw_watch *watch, int64_t due)
{
    zw_swap(&watch->due, due);
    if (due < zw_load(&ticker->next))
        zw_wake(ticker);
}

/* The ticker's thread. */
static void zw_run(void *data)
{
    zw_ticker *ticker = (zw_ticker *)data;
    const PyThread_type_lock wake = ticker->wake;

    while (!zw_load(&ticker->stopping) && ticker->wake == wake) {
        int64_t earliest = ZW_NEVER;
        zw_watch *watch;
        int64_t now;

        zw_swap(&ticker->next, ZW_NEVER);
        now = zw_now();
        for (watch = ticker->head; watch != NULL; watch = watch->next) {
            const int64_t due = zw_load(&watch->due);
            if (due > now)
                earliest = due < earliest ? due : earliest;
            else if (zw_replace(&watch->due, due, ZW_NEVER))
                ticker->interrupt(watch->engine);
        }
        zw_swap(&ticker->next, earliest);
        if (earliest == ZW_NEVER) {
            PyThread_acquire_lock(wake, WAIT_LOCK);
        } else {
            const int64_t nap = (earliest - now) / 1000 + 1;
            PyThread_acquire_lock_timed(
                wake, nap < ZW_LONGEST_NAP_US ? nap : ZW_LONGEST_NAP_US, 0);
        }
        zw_swap(&ticker->signalled, 0);
    }
}

/* Start the thread; the caller holds the GIL. Returns 0, or -1 where it cannot be started. */
static int zw_start(zw_ticker *ticker)
{
    ticker->wake = PyThread_allocate_lock();
    if (ticker->wake == NULL)
        return -1;
    PyThread_acquire_lock(ticker->wake, NOWAIT_LOCK);
    zw_swap(&ticker->stopping, 0);
    zw_swap(&ticker->signalled, 0);
    zw_swap(&ticker->next, ZW_NEVER);
    return PyThread_start_new_thread(zw_run, ticker) == (unsigned long)-1 ? -1 : 0;
}

#endif

from libc.stdint cimport int64_t

cdef extern from "zeno_watch.h" nogil:
    int64_t ZW_NEVER

    ctypedef struct zw_watch:
        int64_t due
        int64_t deadline
        int64_t expired
        void *engine
        void *owner
        int in_main_thread
        zw_watch *next_free

    ctypedef struct zw_ticker:
        int64_t next
        int64_t stopping
        void (*interrupt)(void *engine) noexcept nogil

    int64_t zw_load(int64_t *p) noexcept
    void zw_store(int64_t *p, int64_t value) noexcept
    int64_t zw_swap(int64_t *p, int64_t value) noexcept
    int64_t zw_now() noexcept
    void zw_add(zw_ticker *ticker, zw_watch *watch) noexcept
    void zw_wake(zw_ticker *ticker) noexcept
    void zw_arm(zw_ticker *ticker, zw_watch *watch, int64_t due) noexcept
    int zw_start(zw_ticker *ticker) noexcept

/* Counts what a process copies in large pieces; preloaded, it stands before the C library's functions. */
#include <stddef.h>
#include <stdint.h>

enum { LARGE = 32768 };

uint64_t copied_bytes(void);
void *memcpy(void *to, const void *from, size_t nbytes);
void *memmove(void *to, const void *from, size_t nbytes);
void *__memcpy_chk(void *to, const void *from, size_t nbytes, size_t room);
void *__memmove_chk(void *to, const void *from, size_t nbytes, size_t room);

static uint64_t copied;

uint64_t copied_bytes(void) { return __atomic_load_n(&copied, __ATOMIC_RELAXED); }

static void count(size_t nbytes)
{
    if (nbytes >= LARGE)
        __atomic_fetch_add(&copied, nbytes, __ATOMIC_RELAXED);
}

/* Through volatile pointers, or the compiler makes calls of memmove, that is of itself, of the loops. */
void *memmove(void *to, const void *from, size_t nbytes)
{
    volatile unsigned char *put = to;
    const volatile unsigned char *get = from;
    count(nbytes);
    if ((uintptr_t)to <= (uintptr_t)from)
        for (size_t at = 0; at < nbytes; at++)
            put[at] = get[at];
    else
        for (size_t at = nbytes; at-- > 0;)
            put[at] = get[at];
    return to;
}

void *memcpy(void *to, const void *from, size_t nbytes) { return memmove(to, from, nbytes); }

void *__memcpy_chk(void *to, const void *from, size_t nbytes, size_t room)
{
    (void)room;
    return memmove(to, from, nbytes);
}

void *__memmove_chk(void *to, const void *from, size_t nbytes, size_t room)
{
    (void)room;
    return memmove(to, from, nbytes);
}

/* zeno_stack.h - how much of its stack the calling thread has left.
 *
 * Code that runs on the thread's own stack and may nest as deep as it likes has to be given a bound
 * that the thread really has: beyond its end there is no trap to catch, only a dead process.
 */
#ifndef ZENO_STACK_H
#define ZENO_STACK_H

#include <stddef.h>
#include <stdint.h>

#if defined(_WIN32)

#include <windows.h>

static size_t zs_stack_end(void)
{
    ULONG_PTR low, high;
    GetCurrentThreadStackLimits(&low, &high);
    return (size_t)low;
}

#elif defined(__APPLE__)

#include <pthread.h>

static size_t zs_stack_end(void)
{
    const pthread_t thread = pthread_self();
    return (size_t)pthread_get_stackaddr_np(thread) - pthread_get_stacksize_np(thread);
}

#elif defined(__linux__)

#include <pthread.h>

int pthread_getattr_np(pthread_t, pthread_attr_t *); /* behind _GNU_SOURCE in its header */

static size_t zs_stack_end(void)
{
    pthread_attr_t attributes;
    void *low = NULL;
    size_t nbytes = 0;

    if (pthread_getattr_np(pthread_self(), &attributes) != 0)
        return 0;
    pthread_attr_getstack(&attributes, &low, &nbytes);
    pthread_attr_destroy(&attributes);
    return (size_t)low;
}

#else

static size_t zs_stack_end(void)
{
    return 0; /* not known: taken to be enough */
}

#endif

#if defined(_MSC_VER)
static __declspec(thread) size_t zs_end;
#else
static __thread size_t zs_end;
#endif

/* Return the bytes between here and the lowest address of the thread's stack, which is looked for
 * once in each thread: for the main one that means to read a file. */
static inline size_t zs_stack_left(void)
{
    char here;

    if (zs_end == 0)
        zs_end = zs_stack_end() + 1; /* 1 where it is not known, as 0 means not looked for */
    return (size_t)&here - zs_end;
}

#endif

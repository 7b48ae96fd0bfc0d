/* zeno_output.h - what a WASM guest prints, kept until the host takes it.
 *
 * A library that writes a guest's output from a thread of its own calls zo_write there. Nothing of
 * Python is touched: that thread may come while the interpreter ends, or while whoever waits for
 * the guest holds what Python code would need. Bounded: of a flood the end is kept.
 */
#ifndef ZENO_OUTPUT_H
#define ZENO_OUTPUT_H

#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#if defined(_MSC_VER)
#include <windows.h>
typedef SSIZE_T zo_ssize;
#define ZO_SWAP(p, v) InterlockedExchange((p), (v))
#define ZO_ADD(p, v) (InterlockedExchangeAdd((p), (v)) + (v))
#define ZO_YIELD() SwitchToThread()
#else
#include <sched.h>
#include <sys/types.h>
typedef ssize_t zo_ssize;
#define ZO_SWAP(p, v) __atomic_exchange_n((p), (v), __ATOMIC_ACQ_REL)
#define ZO_ADD(p, v) __atomic_add_fetch((p), (v), __ATOMIC_ACQ_REL)
#define ZO_YIELD() sched_yield()
#endif

enum { ZO_CAPACITY = 4 << 20 }; /* bytes that wait to be taken */

typedef struct zo_output {
    long references;
    long locked; /* for the length of a copy */
    size_t size, capacity;
    size_t lost; /* bytes that were dropped since the last time */
    char *data;
} zo_output;

static zo_output *zo_new(void)
{
    zo_output *output = (zo_output *)calloc(1, sizeof *output);

    if (output)
        output->references = 1;
    return output;
}

static void zo_retain(zo_output *output)
{
    ZO_ADD(&output->references, 1);
}

static void zo_release(void *data)
{
    zo_output *output = (zo_output *)data;

    if (ZO_ADD(&output->references, -1) == 0) {
        free(output->data);
        free(output);
    }
}

static void zo_lock(zo_output *output)
{
    while (ZO_SWAP(&output->locked, 1))
        ZO_YIELD();
}

static void zo_unlock(zo_output *output)
{
    ZO_SWAP(&output->locked, 0);
}

/* Make room for `nbytes`, at most the capacity; what is older goes where there is too much. */
static int zo_make_room(zo_output *output, size_t nbytes)
{
    size_t capacity = output->capacity ? output->capacity : 4096;
    char *grown;

    if (output->size + nbytes > ZO_CAPACITY) {
        const size_t kept = nbytes < ZO_CAPACITY / 2 && output->size > ZO_CAPACITY / 2
                                ? ZO_CAPACITY / 2
                                : ZO_CAPACITY - nbytes < output->size ? ZO_CAPACITY - nbytes
                                                                      : output->size;
        memmove(output->data, output->data + (output->size - kept), kept);
        output->lost += output->size - kept;
        output->size = kept;
    }
    while (capacity < output->size + nbytes)
        capacity *= 2;
    if (capacity > output->capacity) {
        grown = (char *)realloc(output->data, capacity);
        if (!grown)
            return -1;
        output->data = grown;
        output->capacity = capacity;
    }
    return 0;
}

/* Take what a guest prints; a callback of the library's. Returns how much was taken: all of it. */
static zo_ssize zo_write(void *data, const unsigned char *text, size_t nbytes)
{
    zo_output *output = (zo_output *)data;
    const size_t taken = nbytes < ZO_CAPACITY ? nbytes : ZO_CAPACITY;

    zo_lock(output);
    output->lost += nbytes - taken;
    if (taken) {
        if (zo_make_room(output, taken) == 0) {
            memcpy(output->data + output->size, text + (nbytes - taken), taken);
            output->size += taken;
        } else {
            output->lost += taken;
        }
    }
    zo_unlock(output);
    return (zo_ssize)nbytes;
}

/* Hand over what waits; the caller frees it. Returns NULL where there is nothing. */
static char *zo_take(zo_output *output, size_t *nbytes, size_t *lost)
{
    char *data = NULL;

    zo_lock(output);
    *nbytes = output->size;
    *lost = output->lost;
    if (output->size) {
        data = output->data;
        output->data = NULL;
        output->size = output->capacity = 0;
    }
    output->lost = 0;
    zo_unlock(output);
    return data;
}

#endif

/* zeno_ring.h - a ring of records in shared memory, from one writer to one reader.
 *
 * C11 or C++17, nothing but the compiler's atomics: no allocation, no system call. The same source
 * serves the host, guests, tests, and other languages as the description of what to do.
 *
 * Layout. A ring is a control block and `size` bytes of data, a power of two from ZR_MIN_SIZE to
 * ZR_MAX_SIZE. In the control block, little-endian, at their offsets in bytes:
 *
 *       0  u64  head           bytes ever written; the writer's
 *       8  u32  reader_sleeps  1: the reader sleeps, or is about to; whoever makes it 0 wakes it
 *     128  u64  tail           bytes ever read; the reader's
 *     136  u32  writer_sleeps  1: the writer waits for room; whoever makes it 0 wakes it
 *     256                      end
 *
 * Position p of the stream is at data[p mod size]; head - tail is never above `size`, and both are
 * multiples of 8. What is written are records: u32 length, u32 flags, the bytes, and up to seven
 * more, whose value does not matter, to the next multiple of 8. A record may go on at the begin of
 * the data; its first eight bytes never do. ZR_MORE says that the message goes on in the next record:
 * so messages of any length pass, while the other side reads.
 *
 * Trust. Neither side believes the other: what is shared is read once, into private memory, and
 * checked there before it is used. ZR_CORRUPT says that it cannot be; nothing outside of the data was
 * touched then, and the ring is of no use any more. Only what a record holds may change while, and
 * after, it is read: `zr_take` copies it, so that its reader looks at it in memory of its own.
 *
 * Sleeping. How a side is woken is not the ring's business; zeno_fast writes a byte to a pipe. The
 * one that is about to sleep says so and then looks again; the other publishes and then looks whether
 * anybody sleeps. A full fence on both sides keeps each pair in order, so that one of them sees the
 * other (Dekker's way to exclude). Whoever takes the flag back owes, or saves itself, the wake-up.
 */
#ifndef ZENO_RING_H
#define ZENO_RING_H

#include <stdint.h>
#include <string.h>

#if defined(_MSC_VER) && !defined(__clang__)
#include <intrin.h>
#endif

#ifdef __cplusplus
extern "C" {
#endif

enum { ZR_CONTROL_SIZE = 256, ZR_MIN_SIZE = 4096, ZR_MAX_SIZE = 1 << 30 };
enum { ZR_HEADER = 8, ZR_MORE = 1 };
enum { ZR_OK = 0, ZR_EMPTY = -1, ZR_FULL = -2, ZR_CORRUPT = -3, ZR_TOO_LARGE = -4 };

typedef struct zr_control {
    uint64_t head;
    uint32_t reader_sleeps;
    uint8_t writers_line[116];
    uint64_t tail;
    uint32_t writer_sleeps;
    uint8_t readers_line[116];
} zr_control;

typedef struct zr_writer {
    zr_control *control;
    uint8_t *data;
    uint64_t size;
    uint64_t head; /* with what was not published yet */
    uint64_t tail; /* as last seen */
} zr_writer;

typedef struct zr_reader {
    zr_control *control;
    const uint8_t *data;
    uint64_t size;
    uint64_t head; /* as last seen */
    uint64_t tail;
} zr_reader;

/* Tests stop, or end, the process here: between any two accesses to what is shared. */
#ifndef ZR_STEP
#define ZR_STEP() ((void)0)
#endif

/* -- atomics ----------------------------------------------------------------------------------- */

#if defined(_MSC_VER) && !defined(__clang__)
/* x86-64 only, whose plain loads acquire and whose plain stores release; volatile keeps them whole. */
static __inline uint64_t zr_load64(const uint64_t *at)
{
    uint64_t value = *(const volatile uint64_t *)at;
    _ReadWriteBarrier();
    return value;
}
static __inline void zr_store64(uint64_t *at, uint64_t value)
{
    _ReadWriteBarrier();
    *(volatile uint64_t *)at = value;
}
static __inline uint32_t zr_load32(const uint32_t *at) { return *(const volatile uint32_t *)at; }
static __inline void zr_store32(uint32_t *at, uint32_t value) { *(volatile uint32_t *)at = value; }
static __inline uint32_t zr_swap32(uint32_t *at, uint32_t value)
{
    return (uint32_t)_InterlockedExchange((volatile long *)at, (long)value);
}
static __inline void zr_fence(void) { _mm_mfence(); }
#else
static inline uint64_t zr_load64(const uint64_t *at) { return __atomic_load_n(at, __ATOMIC_ACQUIRE); }
static inline void zr_store64(uint64_t *at, uint64_t value)
{
    __atomic_store_n(at, value, __ATOMIC_RELEASE);
}
static inline uint32_t zr_load32(const uint32_t *at) { return __atomic_load_n(at, __ATOMIC_RELAXED); }
static inline void zr_store32(uint32_t *at, uint32_t value)
{
    __atomic_store_n(at, value, __ATOMIC_RELAXED);
}
static inline uint32_t zr_swap32(uint32_t *at, uint32_t value)
{
    return __atomic_exchange_n(at, value, __ATOMIC_ACQ_REL);
}
static inline void zr_fence(void) { __atomic_thread_fence(__ATOMIC_SEQ_CST); }
#endif

/* Tell the processor that this is a loop which waits. */
static inline void zr_pause(void)
{
#if defined(_MSC_VER) && !defined(__clang__)
    _mm_pause();
#elif defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ __volatile__("yield");
#endif
}

/* Bytes of the ring that a record of this many takes. */
static inline uint64_t zr_span(uint64_t nbytes) { return ZR_HEADER + ((nbytes + 7) & ~(uint64_t)7); }

/* How much has to be free for `zr_push_some` of this many bytes to go on. */
static inline uint64_t zr_wanted(const zr_writer *writer, uint64_t nbytes)
{
    return zr_span(nbytes) < writer->size / 4 ? zr_span(nbytes) : writer->size / 4;
}

/* -- writing ----------------------------------------------------------------------------------- */

/* Write to a ring from where its cursors stand; both are 0 in a new one. Returns ZR_OK or ZR_CORRUPT. */
static inline int zr_open_writer(zr_writer *writer, void *control, void *data, uint64_t size)
{
    writer->control = (zr_control *)control;
    writer->data = (uint8_t *)data;
    writer->size = size;
    writer->head = zr_load64(&writer->control->head);
    writer->tail = zr_load64(&writer->control->tail);
    return (writer->head | writer->tail) & 7 || writer->head - writer->tail > size ? ZR_CORRUPT : ZR_OK;
}

/* Have `wanted` bytes free; returns how many are, or ZR_CORRUPT. */
static inline int64_t zr_room(zr_writer *writer, uint64_t wanted)
{
    uint64_t room = writer->size - (writer->head - writer->tail);
    if (room < wanted) {
        uint64_t tail = zr_load64(&writer->control->tail);
        ZR_STEP();
        if (writer->head - tail > writer->size || tail & 7)
            return ZR_CORRUPT;
        writer->tail = tail;
        room = writer->size - (writer->head - tail);
    }
    return (int64_t)room;
}

/* Write a record for which there is room; `zr_publish` lets the reader see it. */
static inline void zr_put(zr_writer *writer, const void *bytes, uint32_t nbytes, uint32_t flags)
{
    uint64_t at = writer->head & (writer->size - 1);
    uint64_t first;
    uint32_t header[2];
    header[0] = nbytes;
    header[1] = flags;
    memcpy(writer->data + at, header, ZR_HEADER);
    ZR_STEP();
    at = (at + ZR_HEADER) & (writer->size - 1);
    first = writer->size - at < nbytes ? writer->size - at : nbytes;
    if (first)
        memcpy(writer->data + at, bytes, (size_t)first);
    ZR_STEP();
    if (first < nbytes)
        memcpy(writer->data, (const uint8_t *)bytes + first, (size_t)(nbytes - first));
    ZR_STEP();
    writer->head += zr_span(nbytes);
}

/* Let the reader see what was written. Once for several records, which spares the line of the cursor many
 * ways between two processors. */
static inline void zr_publish(zr_writer *writer)
{
    zr_store64(&writer->control->head, writer->head);
    ZR_STEP();
}

/* Write a whole record and publish it. Returns ZR_OK, ZR_FULL, ZR_TOO_LARGE or ZR_CORRUPT. */
static inline int zr_push(zr_writer *writer, const void *bytes, uint32_t nbytes, uint32_t flags)
{
    int64_t room;
    if (zr_span(nbytes) > writer->size)
        return ZR_TOO_LARGE;
    room = zr_room(writer, zr_span(nbytes));
    if (room < 0)
        return (int)room;
    if ((uint64_t)room < zr_span(nbytes))
        return ZR_FULL;
    zr_put(writer, bytes, nbytes, flags);
    zr_publish(writer);
    return ZR_OK;
}

/* Write as much of a message as there is room for: all of it, with the flags of its last record, or a
 * piece of some size marked ZR_MORE. Returns how many bytes that were, or ZR_FULL or ZR_CORRUPT; call
 * it again with the others. It is for the caller to publish them, at the latest before it waits. */
static inline int64_t zr_put_some(
    zr_writer *writer, const void *bytes, uint64_t nbytes, uint32_t flags)
{
    const uint64_t least = writer->size / 4;
    int64_t room = zr_room(writer, zr_span(nbytes) < writer->size ? zr_span(nbytes) : writer->size);
    if (room < 0)
        return room;
    if ((uint64_t)room >= zr_span(nbytes)) {
        zr_put(writer, bytes, (uint32_t)nbytes, flags);
        return (int64_t)nbytes;
    }
    if (zr_span(nbytes) <= least || (uint64_t)room < least)
        return ZR_FULL;
    room -= ZR_HEADER; /* still a multiple of 8, and below `nbytes`, for the whole did not fit */
    zr_put(writer, bytes, (uint32_t)room, ZR_MORE);
    return room;
}

/* The same, published. */
static inline int64_t zr_push_some(
    zr_writer *writer, const void *bytes, uint64_t nbytes, uint32_t flags)
{
    const int64_t pushed = zr_put_some(writer, bytes, nbytes, flags);
    if (pushed >= 0)
        zr_publish(writer);
    return pushed;
}

/* After one or more records: whether the reader has to be woken. It does not sleep for the ring then. */
static inline int zr_must_wake_reader(zr_writer *writer)
{
    zr_fence();
    ZR_STEP();
    return zr_load32(&writer->control->reader_sleeps) && zr_swap32(&writer->control->reader_sleeps, 0);
}

/* Before the writer sleeps for room: whether it may, as there are still fewer bytes free than are
 * wanted. Where it may not, there is room, or ZR_CORRUPT. */
static inline int zr_writer_may_sleep(zr_writer *writer, uint64_t wanted)
{
    int64_t room;
    zr_store32(&writer->control->writer_sleeps, 1);
    ZR_STEP();
    zr_fence();
    room = zr_room(writer, wanted);
    if (room >= 0 && (uint64_t)room < wanted)
        return 1;
    zr_store32(&writer->control->writer_sleeps, 0);
    return 0;
}

/* -- reading ----------------------------------------------------------------------------------- */

/* Read a ring from where its cursors stand. Returns ZR_OK or ZR_CORRUPT. */
static inline int zr_open_reader(zr_reader *reader, void *control, const void *data, uint64_t size)
{
    reader->control = (zr_control *)control;
    reader->data = (const uint8_t *)data;
    reader->size = size;
    reader->tail = zr_load64(&reader->control->tail);
    reader->head = reader->tail;
    return reader->tail & 7 ? ZR_CORRUPT : ZR_OK;
}

/* Return the length of the next record and its flags, or ZR_EMPTY or ZR_CORRUPT. It stays. */
static inline int64_t zr_next(zr_reader *reader, uint32_t *flags)
{
    uint32_t header[2];
    if (reader->head == reader->tail) {
        uint64_t head = zr_load64(&reader->control->head);
        ZR_STEP();
        if (head == reader->tail)
            return ZR_EMPTY;
        if (head - reader->tail > reader->size || head & 7)
            return ZR_CORRUPT;
        reader->head = head;
    }
    memcpy(header, reader->data + (reader->tail & (reader->size - 1)), ZR_HEADER);
    ZR_STEP();
    if (zr_span(header[0]) > reader->head - reader->tail || header[1] & ~(uint32_t)ZR_MORE)
        return ZR_CORRUPT;
    *flags = header[1];
    return header[0];
}

/* Copy the record whose length `zr_next` has just returned, and let the writer have its place. */
static inline void zr_take(zr_reader *reader, void *to, uint32_t nbytes)
{
    uint64_t at = (reader->tail + ZR_HEADER) & (reader->size - 1);
    uint64_t first = reader->size - at < nbytes ? reader->size - at : nbytes;
    if (first)
        memcpy(to, reader->data + at, (size_t)first);
    ZR_STEP();
    if (first < nbytes)
        memcpy((uint8_t *)to + first, reader->data, (size_t)(nbytes - first));
    ZR_STEP();
    reader->tail += zr_span(nbytes);
    zr_store64(&reader->control->tail, reader->tail);
    ZR_STEP();
}

/* Whether there is something to read; cheap enough to be asked in a loop. */
static inline int zr_is_ready(const zr_reader *reader)
{
    return reader->head != reader->tail || zr_load64(&reader->control->head) != reader->tail;
}

/* From now on a wake-up is wanted, once; returns whether there is something to read already. */
static inline int zr_reader_rests(zr_reader *reader)
{
    zr_store32(&reader->control->reader_sleeps, 1);
    ZR_STEP();
    zr_fence();
    return zr_is_ready(reader);
}

/* The reader is awake again, for whatever reason: no wake-up is wanted. */
static inline void zr_reader_awake(zr_reader *reader)
{
    zr_store32(&reader->control->reader_sleeps, 0);
}

/* Before the reader sleeps: whether it may. Where it may not, there is something to read. */
static inline int zr_reader_may_sleep(zr_reader *reader)
{
    if (!zr_reader_rests(reader))
        return 1;
    zr_reader_awake(reader);
    return 0;
}

/* After one or more records were taken: whether the writer has to be woken. */
static inline int zr_must_wake_writer(zr_reader *reader)
{
    zr_fence();
    ZR_STEP();
    return zr_load32(&reader->control->writer_sleeps) && zr_swap32(&reader->control->writer_sleeps, 0);
}

#ifdef __cplusplus
}
#endif

#endif

/* zeno_guest.h - how a sidecar in C or C++ hears its host and answers: lines, or shared memory.
 *
 * C11 or C++17; Linux, macOS and Windows. One thread uses a link at a time.
 *
 *     zg_link link;
 *     zg_open(&link);                              // before anything is read or printed
 *     while ((nbytes = zg_receive(&link, &message)) >= 0)
 *         ... zg_send(&link, answer, length) ...   // each one JSON object, without a line end
 *     zg_close(&link);
 *
 * A message is what docs/protocol.md describes. Where `zg_offers_ring` says so, the answer to
 * `plugin_init` may have "shm" among its `features`; call `zg_use_ring` right after that was sent, and
 * all further messages go through shared memory. What is printed to stdout is logged as ever.
 *
 * `input` and `output` may be set to others than the standard streams after `zg_open`. With
 * `interruptible` set, a signal ends a wait: zg_receive returns ZG_INTERRUPTED then.
 */
#ifndef ZENO_GUEST_H
#define ZENO_GUEST_H

#include "zeno_shm.h"

#include <stdlib.h>

#ifndef _WIN32
#include <poll.h>
#include <sched.h>
#include <sys/socket.h>
#include <time.h>
#endif

#ifdef __cplusplus
extern "C" {
#endif

enum { ZG_PAUSES = 60, ZG_SPIN_NS = 30000, ZG_BUSY_NS = 8000, ZG_MISSES = 3, ZG_MOST_SKIPPED = 6 };
enum { ZG_ENDED = -1, ZG_INTERRUPTED = -2, ZG_NOTHING = -3 };

typedef struct zg_block {
    uint64_t offset, size; /* without its header */
} zg_block;

typedef struct zg_buffer {
    uint64_t id, size;
    uint8_t *base;
} zg_buffer;

typedef struct zg_link {
    zs_segment segment; /* its base is NULL where the host shares no memory */
    zs_segment arena;   /* the host's; the same */
    zg_block *blocks;   /* of our own arena, that were taken, in ascending order */
    size_t block_count, block_capacity;
    zg_buffer *buffers; /* that the host has given us */
    size_t buffer_count;
    int buffer_socket; /* through which they come, or -1 */
    zs_handle input, output;
    int uses_ring, interruptible;
    zr_reader reader;
    zr_writer writer;
    char *buffer; /* what was received */
    size_t capacity, start, end, scanned;
    int misses, skip; /* of waiting awake */
    uint64_t sleeps;  /* how often it slept */
} zg_link;

/* -- the system --------------------------------------------------------------------------------- */

#ifdef _WIN32
static inline int64_t zg_read(zg_link *link, void *buffer, size_t nbytes)
{
    DWORD count = 0;
    if (!ReadFile(link->input, buffer, (DWORD)nbytes, &count, NULL))
        return 0;
    return (int64_t)count;
}
static inline int64_t zg_write(zg_link *link, const void *bytes, size_t nbytes)
{
    DWORD count = 0;
    if (!WriteFile(link->output, bytes, (DWORD)nbytes, &count, NULL))
        return -1;
    return (int64_t)count;
}
static inline void zg_yield(void) { SwitchToThread(); }
static inline int64_t zg_now(void)
{
    LARGE_INTEGER count, frequency;
    QueryPerformanceCounter(&count);
    QueryPerformanceFrequency(&frequency);
    return (int64_t)((double)count.QuadPart * 1e9 / (double)frequency.QuadPart);
}
#else
/* Returns 0 at the end of input, whatever ended it, or ZG_INTERRUPTED. */
static inline int64_t zg_read(zg_link *link, void *buffer, size_t nbytes)
{
    for (;;) {
        const ssize_t count = read(link->input, buffer, nbytes);
        if (count >= 0)
            return count;
        if (errno != EINTR)
            return 0;
        if (link->interruptible)
            return ZG_INTERRUPTED;
    }
}
static inline int64_t zg_write(zg_link *link, const void *bytes, size_t nbytes)
{
    for (;;) {
        const ssize_t count = write(link->output, bytes, nbytes);
        if (count >= 0 || errno != EINTR)
            return count;
    }
}
static inline void zg_yield(void) { sched_yield(); }
static inline int64_t zg_now(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
}
#endif

/* -- setting up --------------------------------------------------------------------------------- */

static inline void zg_open(zg_link *link)
{
    memset(link, 0, sizeof *link);
#ifdef _WIN32
    link->input = GetStdHandle(STD_INPUT_HANDLE);
    link->output = GetStdHandle(STD_OUTPUT_HANDLE);
#else
    link->input = STDIN_FILENO;
    link->output = STDOUT_FILENO;
#endif
    zs_attach(&link->segment, getenv("ZENO_SHM"));
    zs_attach_memory(&link->arena, getenv("ZENO_ARENA"));
    link->buffer_socket = -1;
#ifndef _WIN32
    if (getenv("ZENO_BUFFERS"))
        link->buffer_socket = atoi(getenv("ZENO_BUFFERS"));
#endif
}

/* Whether the host shares memory with this process, which may be made use of. */
static inline int zg_offers_ring(const zg_link *link) { return link->segment.base != NULL; }

/* Send and receive through shared memory from now on. */
static inline void zg_use_ring(zg_link *link)
{
    if (zg_offers_ring(link) && zs_open_rings(&link->segment, 0, &link->reader, &link->writer) == ZR_OK)
        link->uses_ring = 1;
    link->start = link->end = link->scanned = 0; /* a line more would be one that nobody sends */
}

static inline void zg_close(zg_link *link)
{
    free(link->buffer);
    link->buffer = NULL;
    free(link->blocks);
    link->blocks = NULL;
    while (link->buffer_count) {
        link->buffer_count--;
        zs_unmap(link->buffers[link->buffer_count].base, link->buffers[link->buffer_count].size);
    }
    free(link->buffers);
    link->buffers = NULL;
    zs_close(&link->segment);
    zs_close(&link->arena);
}

/* Have room for this much more input; 0 where there is no memory. */
static inline int zg_make_room(zg_link *link, size_t nbytes)
{
    size_t capacity = link->capacity ? link->capacity : 65536;
    char *grown;
    if (link->capacity && link->capacity - link->end >= nbytes)
        return 1;
    if (link->start) {
        memmove(link->buffer, link->buffer + link->start, link->end - link->start);
        link->end -= link->start;
        link->scanned -= link->start;
        link->start = 0;
    }
    while (capacity - link->end < nbytes)
        capacity *= 2;
    if (capacity == link->capacity)
        return 1;
    grown = (char *)realloc(link->buffer, capacity);
    if (!grown)
        return 0;
    link->buffer = grown;
    link->capacity = capacity;
    return 1;
}

/* -- waiting ------------------------------------------------------------------------------------ */

/* Sleep until the host has something to say; returns as zg_read. The bytes are only there to wake us. */
static inline int64_t zg_sleep(zg_link *link)
{
    char bytes[256];
    link->sleeps++;
    return zg_read(link, bytes, sizeof bytes);
}

/* Wait awake for a moment; whether something came. Where that is in vain several times in a row, as
 * on a busy machine or with a host that calls seldom, it is left for longer and longer. */
static inline int zg_spin(zg_link *link)
{
    int64_t now, before, until;
    int turn;
    if (link->skip > 0) {
        link->skip--;
        return 0;
    }
    for (turn = 0; turn < ZG_PAUSES; turn++) {
        if (zr_is_ready(&link->reader))
            goto came;
        zr_pause();
    }
    now = zg_now();
    until = now + ZG_SPIN_NS;
    do {
        zg_yield();
        if (zr_is_ready(&link->reader))
            goto came;
        before = now;
        now = zg_now();
        /* Where somebody else had the processor meanwhile, others have more use for it. */
    } while (now < until && now - before < ZG_BUSY_NS);
    if (++link->misses >= ZG_MISSES)
        link->skip = 1 << (link->misses < ZG_MOST_SKIPPED ? link->misses : ZG_MOST_SKIPPED);
    return 0;
came:
    link->misses = 0;
    return 1;
}

/* Wait awake for a moment until the host has read; whether there is room. */
static inline int zg_spin_for_room(zg_link *link, uint64_t wanted)
{
    const int64_t until = zg_now() + ZG_SPIN_NS;
    while (zr_room(&link->writer, wanted) < (int64_t)wanted) {
        if (zg_now() > until)
            return 0;
        zg_yield();
    }
    return 1;
}

/* -- messages ----------------------------------------------------------------------------------- */

/* Return a message's length if one comes while this side waits awake, else ZG_NOTHING or ZG_ENDED. */
static inline int64_t zg_receive_soon(zg_link *link, const char **message)
{
    uint32_t flags = 0;
    for (;;) {
        int64_t count = zr_next(&link->reader, &flags);
        if (count >= 0) {
            if (!zg_make_room(link, (size_t)count + 1))
                return ZG_ENDED;
            zr_take(&link->reader, link->buffer + link->end, (uint32_t)count);
            link->end += (size_t)count;
            if (link->reader.head == link->reader.tail && zr_must_wake_writer(&link->reader))
                zg_write(link, "\n", 1);
            if (flags & ZR_MORE)
                continue;
            count = (int64_t)link->end;
            link->end = 0;
            *message = link->buffer;
            return count;
        }
        if (count == ZR_CORRUPT)
            return ZG_ENDED;
        if (!zg_spin(link))
            return ZG_NOTHING;
    }
}

static inline int64_t zg_receive_record(zg_link *link, const char **message)
{
    for (;;) {
        int64_t count = zg_receive_soon(link, message);
        if (count != ZG_NOTHING)
            return count;
        if (!zr_reader_may_sleep(&link->reader))
            continue;
        count = zg_sleep(link);
        zr_reader_awake(&link->reader);
        if (count == ZG_INTERRUPTED)
            return ZG_INTERRUPTED;
        if (count == 0 && !zr_is_ready(&link->reader))
            return ZG_ENDED;
    }
}

static inline int64_t zg_receive_line(zg_link *link, const char **message)
{
    for (;;) {
        char *end = NULL;
        int64_t count;
        if (link->scanned < link->end)
            end = (char *)memchr(link->buffer + link->scanned, '\n', link->end - link->scanned);
        if (end) {
            char *begin = link->buffer + link->start;
            link->start = link->scanned = (size_t)(end - link->buffer) + 1;
            if (end == begin)
                continue;
            *message = begin;
            return end - begin;
        }
        link->scanned = link->end;
        if (link->start == link->end)
            link->start = link->end = link->scanned = 0;
        if (!zg_make_room(link, 32768))
            return ZG_ENDED;
        count = zg_read(link, link->buffer + link->end, link->capacity - link->end);
        if (count <= 0)
            return count == 0 ? ZG_ENDED : ZG_INTERRUPTED;
        link->end += (size_t)count;
    }
}

/* Wait for the next message; returns its length in bytes, or ZG_ENDED once there will be no more. It is
 * good until the next call. */
static inline int64_t zg_receive(zg_link *link, const char **message)
{
    return link->uses_ring ? zg_receive_record(link, message) : zg_receive_line(link, message);
}

static inline int zg_send_record(zg_link *link, const char *message, size_t nbytes)
{
    size_t at = 0;
    int done = 0;
    while (!done) {
        const int64_t count = zr_push_some(&link->writer, message + at, nbytes - at, 0);
        if (count >= 0) {
            at += (size_t)count;
            done = at == nbytes;
        } else if (count != ZR_FULL) {
            return -1;
        }
        if (zr_must_wake_reader(&link->writer) && zg_write(link, "\n", 1) < 0)
            return -1;
        if (count == ZR_FULL && !zg_spin_for_room(link, zr_wanted(&link->writer, nbytes - at)) &&
            zr_writer_may_sleep(&link->writer, zr_wanted(&link->writer, nbytes - at)) && zg_sleep(link) == 0)
            return -1;
    }
    return 0;
}

static inline int zg_send_line(zg_link *link, const char *message, size_t nbytes)
{
    while (nbytes) {
        const int64_t count = zg_write(link, message, nbytes);
        if (count < 0)
            return -1;
        message += count;
        nbytes -= (size_t)count;
    }
    return zg_write(link, "\n", 1) == 1 ? 0 : -1;
}

/* Send one message, without a line end and without one inside. Returns 0, or -1 when the host has gone. */
static inline int zg_send(zg_link *link, const char *message, size_t nbytes)
{
    return link->uses_ring ? zg_send_record(link, message, nbytes) : zg_send_line(link, message, nbytes);
}

/* -- bytes beside the JSON ---------------------------------------------------------------------- */

/* Whether bytes may go through shared memory: then "arena" belongs among the features. */
static inline int zg_offers_arena(const zg_link *link)
{
    return link->arena.base != NULL && link->segment.base != NULL;
}

/* Return the bytes that a request means by `{"$bytes":[offset,nbytes]}`, or NULL where there are none.
 * They are the guest's to read and to write until it has answered. */
static inline void *zg_bytes(zg_link *link, uint64_t offset, uint64_t nbytes)
{
    if (!link->arena.base || offset > link->arena.size || nbytes > link->arena.size - offset)
        return NULL;
    return link->arena.base + offset;
}

/* Take room for bytes to answer with; write them, and send `{"$bytes":[*offset,nbytes]}`, with
 * `"binary":true` behind `data`. Returns NULL where there is no room: send base64 then. */
static inline void *zg_new_bytes(zg_link *link, uint64_t nbytes, uint64_t *offset)
{
    const uint64_t begin = link->segment.header.arena;
    const uint64_t end = begin + link->segment.header.arena_size;
    const uint64_t size = (nbytes + 63) & ~(uint64_t)63;
    uint64_t at = begin;
    size_t from, to = 0;
    if (!zg_offers_arena(link) || size < nbytes)
        return NULL;
    for (from = 0; from < link->block_count; from++) /* those that the host has done with go */
        if (zr_load32((uint32_t *)(void *)(link->segment.base + link->blocks[from].offset - ZS_BLOCK_HEADER)))
            link->blocks[to++] = link->blocks[from];
    link->block_count = to;
    for (to = 0; to < link->block_count; to++) {
        const uint64_t next = link->blocks[to].offset - ZS_BLOCK_HEADER;
        if (next - at >= size + ZS_BLOCK_HEADER)
            break;
        at = link->blocks[to].offset + link->blocks[to].size;
    }
    if (to == link->block_count && end - at < size + ZS_BLOCK_HEADER)
        return NULL;
    if (link->block_count == link->block_capacity) {
        const size_t capacity = link->block_capacity ? 2 * link->block_capacity : 16;
        zg_block *grown = (zg_block *)realloc(link->blocks, capacity * sizeof *grown);
        if (!grown)
            return NULL;
        link->blocks = grown;
        link->block_capacity = capacity;
    }
    memmove(link->blocks + to + 1, link->blocks + to, (link->block_count - to) * sizeof *link->blocks);
    link->block_count++;
    link->blocks[to].offset = at + ZS_BLOCK_HEADER;
    link->blocks[to].size = size;
    zr_store32((uint32_t *)(void *)(link->segment.base + at), 1);
    *offset = at + ZS_BLOCK_HEADER;
    return link->segment.base + *offset;
}

/* Whether the host may send buffers of its own: then "buffers" belongs among the features. */
static inline int zg_offers_buffers(const zg_link *link)
{
    return zg_offers_arena(link) && link->buffer_socket >= 0;
}

#ifndef _WIN32
/* Take a buffer that the host has given; 0 where none came within a second. */
static inline int zg_take_buffer(zg_link *link)
{
    uint64_t about[2];
    union {
        struct cmsghdr align;
        char bytes[CMSG_SPACE(sizeof(int))];
    } control;
    struct iovec part;
    struct msghdr message;
    struct cmsghdr *attached;
    struct pollfd waits;
    zg_buffer *grown;
    ssize_t count;
    int fd = -1;
    waits.fd = link->buffer_socket;
    waits.events = POLLIN;
    if (poll(&waits, 1, 1000) <= 0)
        return 0;
    part.iov_base = about;
    part.iov_len = sizeof about;
    memset(&message, 0, sizeof message);
    message.msg_iov = &part;
    message.msg_iovlen = 1;
    message.msg_control = control.bytes;
    message.msg_controllen = sizeof control.bytes;
    count = recvmsg(link->buffer_socket, &message, 0);
    attached = count > 0 ? CMSG_FIRSTHDR(&message) : NULL;
    if (attached && attached->cmsg_level == SOL_SOCKET && attached->cmsg_type == SCM_RIGHTS)
        memcpy(&fd, CMSG_DATA(attached), sizeof fd);
    if (fd < 0)
        return 0;
    grown = (zg_buffer *)realloc(link->buffers, (link->buffer_count + 1) * sizeof *grown);
    if (grown) {
        link->buffers = grown;
        grown += link->buffer_count;
        grown->id = about[0];
        grown->size = about[1] ? about[1] : 1;
        grown->base = count == (ssize_t)sizeof about ? (uint8_t *)zs_map(fd, grown->size) : NULL;
        link->buffer_count += grown->base != NULL;
    }
    close(fd);
    return grown != NULL;
}
#endif

/* Return the bytes that a request means by `{"$bytes":[offset,nbytes,id]}`, or NULL where there are none.
 * They may be read and written until the request is answered, and be answered with in the same words. */
static inline void *zg_buffer_bytes(zg_link *link, uint64_t id, uint64_t offset, uint64_t nbytes)
{
    for (;;) {
        size_t index;
        for (index = 0; index < link->buffer_count; index++) {
            const zg_buffer *buffer = link->buffers + index;
            if (buffer->id != id)
                continue;
            if (offset > buffer->size || nbytes > buffer->size - offset)
                return NULL;
            return buffer->base + offset;
        }
#ifdef _WIN32
        return NULL;
#else
        if (link->buffer_socket < 0 || !zg_take_buffer(link))
            return NULL;
#endif
    }
}

/* Let go of a buffer: the host says so by `{"type":"forget_buffers","buffers":[id,...]}`. */
static inline void zg_forget_buffer(zg_link *link, uint64_t id)
{
    size_t index;
#ifndef _WIN32
    zg_buffer_bytes(link, id, 0, 0); /* it may not have been taken yet */
#endif
    for (index = 0; index < link->buffer_count; index++) {
        if (link->buffers[index].id == id) {
            zs_unmap(link->buffers[index].base, link->buffers[index].size);
            link->buffers[index] = link->buffers[--link->buffer_count];
            return;
        }
    }
}

/* -- base64, where bytes cannot go through shared memory ----------------------------------------- */

/* How much `zg_encode` writes, without an end mark. */
static inline size_t zg_encoded_size(size_t nbytes) { return (nbytes + 2) / 3 * 4; }

/* Write bytes as the text of `{"$bytes":"text"}`. */
static inline void zg_encode(char *text, const void *bytes, size_t nbytes)
{
    static const char digits[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    const uint8_t *from = (const uint8_t *)bytes;
    size_t at;
    for (at = 0; at < nbytes; at += 3, text += 4) {
        const size_t left = nbytes - at;
        const uint32_t bits = (uint32_t)from[at] << 16 | (left > 1 ? (uint32_t)from[at + 1] << 8 : 0) |
                              (left > 2 ? (uint32_t)from[at + 2] : 0);
        text[0] = digits[bits >> 18];
        text[1] = digits[bits >> 12 & 63];
        text[2] = left > 1 ? digits[bits >> 6 & 63] : '=';
        text[3] = left > 2 ? digits[bits & 63] : '=';
    }
}

/* Read the text of `{"$bytes":"text"}` into a place for `length / 4 * 3` bytes; returns how many they are,
 * or -1 where that is no base64. */
static inline int64_t zg_decode(void *bytes, const char *text, size_t length)
{
    uint8_t *to = (uint8_t *)bytes;
    size_t at, digit;
    if (length % 4)
        return -1;
    for (at = 0; at < length; at += 4) {
        const size_t digits = text[at + 3] != '=' ? 4 : text[at + 2] != '=' ? 3 : 2;
        uint32_t bits = 0;
        if (digits < 4 && at + 4 < length)
            return -1;
        for (digit = 0; digit < digits; digit++) {
            const char c = text[at + digit];
            const int value = c >= 'A' && c <= 'Z'   ? c - 'A'
                              : c >= 'a' && c <= 'z' ? c - 'a' + 26
                              : c >= '0' && c <= '9' ? c - '0' + 52
                              : c == '+'             ? 62
                              : c == '/'             ? 63
                                                     : -1;
            if (value < 0)
                return -1;
            bits |= (uint32_t)value << (18 - 6 * digit);
        }
        for (digit = 1; digit < digits; digit++)
            *to++ = (uint8_t)(bits >> (24 - 8 * digit));
    }
    return to - (uint8_t *)bytes;
}

/* Take bytes back that were not sent. */
static inline void zg_drop_bytes(zg_link *link, uint64_t offset)
{
    zr_store32((uint32_t *)(void *)(link->segment.base + offset - ZS_BLOCK_HEADER), 0);
}

#ifdef __cplusplus
}
#endif

#endif

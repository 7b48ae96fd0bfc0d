/* The ring: every length and place, cursors that wrap, ends that are killed or hostile. On Windows
 * without those that are killed. */
static void step(void);
#define ZR_STEP() step()
#include "zeno_shm.h"

#include <pthread.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#ifndef _WIN32
#include <sys/wait.h>
#endif

#define CHECK(condition)                                              \
    do {                                                              \
        if (!(condition)) {                                           \
            fprintf(stderr, "line %d: %s\n", __LINE__, #condition);   \
            return 1;                                                 \
        }                                                             \
    } while (0)

enum { RING = 4096 };

static long steps_left = -1; /* until the process ends; -1: it does not */

static void step(void)
{
    if (steps_left > 0 && --steps_left == 0)
        _exit(7);
}

static uint8_t pattern(uint64_t message, uint64_t at)
{
    return (uint8_t)(message * 131 + at * 7 + (at >> 8));
}

static void fill(uint8_t *bytes, uint64_t message, uint64_t nbytes)
{
    for (uint64_t at = 0; at < nbytes; at++)
        bytes[at] = pattern(message, at);
}

static int holds(const uint8_t *bytes, uint64_t message, uint64_t nbytes)
{
    for (uint64_t at = 0; at < nbytes; at++)
        if (bytes[at] != pattern(message, at))
            return 0;
    return 1;
}

typedef struct ring {
    zr_control *control;
    uint8_t *data; /* on the heap, exactly as long as it is, so that a byte too far is noticed */
    zr_writer writer;
    zr_reader reader;
} ring;

static void set_up(ring *r, uint64_t begin)
{
    r->control = (zr_control *)calloc(1, sizeof *r->control);
    r->data = (uint8_t *)malloc(RING);
    memset(r->data, 0xAA, RING);
    r->control->head = r->control->tail = begin;
    zr_open_writer(&r->writer, r->control, r->data, RING);
    zr_open_reader(&r->reader, r->control, r->data, RING);
}

static void tear_down(ring *r)
{
    free(r->control);
    free(r->data);
}

/* Each length at each place, with the cursors before, at and behind where they wrap. */
static int test_lengths(uint64_t begin)
{
    static uint8_t sent[RING], got[RING];
    uint64_t message = 0;
    uint32_t flags;
    ring r;
    set_up(&r, begin);
    CHECK(sizeof(zr_control) == ZR_CONTROL_SIZE);
    CHECK(zr_next(&r.reader, &flags) == ZR_EMPTY && !zr_is_ready(&r.reader));
    for (uint32_t nbytes = 0; nbytes <= RING - ZR_HEADER; nbytes += nbytes < 40 ? 1 : 61) {
        for (int turn = 0; turn < 20; turn++, message++) {
            fill(sent, message, nbytes);
            CHECK(zr_push(&r.writer, sent, nbytes, 0) == ZR_OK);
            CHECK(zr_is_ready(&r.reader));
            CHECK(zr_next(&r.reader, &flags) == nbytes && flags == 0);
            zr_take(&r.reader, got, nbytes);
            CHECK(holds(got, message, nbytes));
            CHECK(zr_next(&r.reader, &flags) == ZR_EMPTY);
        }
    }
    CHECK(zr_push(&r.writer, sent, RING - ZR_HEADER + 1, 0) == ZR_TOO_LARGE);
    /* Exactly full, and one record short of it. */
    for (uint32_t last = RING - 2 * ZR_HEADER - 8; last <= RING - 2 * ZR_HEADER; last += 8) {
        fill(sent, message, last);
        CHECK(zr_push(&r.writer, sent, last, 0) == ZR_OK);
        if (last == RING - 2 * ZR_HEADER - 8)
            CHECK(zr_push(&r.writer, sent, 9, 0) == ZR_FULL);
        CHECK(zr_push(&r.writer, sent, 0, 0) == ZR_OK);
        CHECK(zr_push(&r.writer, sent, 0, 0) == (last == RING - 2 * ZR_HEADER ? ZR_FULL : ZR_OK));
        CHECK(zr_next(&r.reader, &flags) == last);
        zr_take(&r.reader, got, last);
        CHECK(holds(got, message, last));
        while (zr_next(&r.reader, &flags) == 0)
            zr_take(&r.reader, got, 0);
        CHECK(zr_next(&r.reader, &flags) == ZR_EMPTY);
    }
    tear_down(&r);
    return 0;
}

/* Messages of up to eight times the ring, in pieces. */
static int test_pieces(void)
{
    static uint8_t sent[8 * RING], got[8 * RING + RING];
    uint32_t flags;
    ring r;
    set_up(&r, 0);
    for (uint64_t nbytes = 0; nbytes <= sizeof sent; nbytes += 997) {
        uint64_t out = 0, in = 0;
        int whole = 0, waits = 0;
        fill(sent, nbytes, nbytes);
        while (!whole) {
            int64_t count = ZR_FULL;
            if (!out || out < nbytes)
                count = zr_push_some(&r.writer, sent + out, nbytes - out, 0);
            if (count >= 0) {
                out += (uint64_t)count;
                if (count == 0)
                    CHECK(nbytes == 0);
            } else {
                CHECK(count == ZR_FULL);
                if (out < nbytes) {
                    CHECK(zr_writer_may_sleep(&r.writer, zr_wanted(&r.writer, nbytes - out)));
                }
                while ((count = zr_next(&r.reader, &flags)) >= 0) {
                    zr_take(&r.reader, got + in, (uint32_t)count);
                    in += (uint64_t)count;
                    whole = flags != ZR_MORE;
                }
                CHECK(count == ZR_EMPTY && waits++ < 64);
                zr_must_wake_writer(&r.reader);
            }
            if (nbytes == 0 && out == 0) {
                CHECK(zr_next(&r.reader, &flags) == 0);
                zr_take(&r.reader, got, 0);
                whole = 1;
            }
        }
        CHECK(in == nbytes && holds(got, nbytes, nbytes));
    }
    tear_down(&r);
    return 0;
}

/* Whatever cursors and headers say, nothing outside of the data is touched and nothing hangs. */
static int test_refusals(void)
{
    static uint8_t bytes[RING];
    const uint64_t wrong[] = {1, 7, 8 * RING, RING + 8, (uint64_t)-8, (uint64_t)-1, 1ull << 63};
    uint32_t flags, header[2];
    ring r;
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        set_up(&r, 64);
        r.control->head = 64 + wrong[i];
        CHECK(zr_next(&r.reader, &flags) == ZR_CORRUPT);
        CHECK(zr_next(&r.reader, &flags) == ZR_CORRUPT);
        tear_down(&r);
        set_up(&r, 64);
        CHECK(zr_push(&r.writer, bytes, RING - 64, 0) == ZR_OK);
        r.control->tail = 64 + wrong[i] + RING;
        CHECK(zr_push(&r.writer, bytes, 512, 0) == ZR_CORRUPT);
        CHECK(zr_push_some(&r.writer, bytes, 512, 0) == ZR_CORRUPT);
        CHECK(!zr_writer_may_sleep(&r.writer, 512));
        tear_down(&r);
    }
    for (uint32_t length = 0; length < 64; length++) {
        set_up(&r, 0);
        CHECK(zr_push(&r.writer, bytes, 16, 0) == ZR_OK);
        header[0] = length < 16 ? 17 + length : 0xFFFFFFFFu - (length - 16);
        header[1] = 0;
        memcpy(r.data, header, sizeof header);
        CHECK(zr_next(&r.reader, &flags) == ZR_CORRUPT);
        header[0] = 16;
        header[1] = 2u << (length % 31);
        memcpy(r.data, header, sizeof header);
        CHECK(zr_next(&r.reader, &flags) == ZR_CORRUPT);
        tear_down(&r);
    }
    return 0;
}

/* -- a peer that writes anything anywhere, at any time ------------------------------------------ */

static ring hostile;
static uint32_t hostile_stop;

static void *scribble(void *seed)
{
    uint64_t random = (uint64_t)(uintptr_t)seed * 2654435761u + 1;
    while (!__atomic_load_n(&hostile_stop, __ATOMIC_RELAXED)) {
        random = random * 6364136223846793005ull + 1442695040888963407ull;
        const uint64_t value = random >> 24 & 1 ? random >> 32 : (random >> 32) % (2 * RING) & ~7ull;
        switch (random >> 16 & 7) {
        case 0: __atomic_store_n(&hostile.control->head, value, __ATOMIC_RELAXED); break;
        case 1: __atomic_store_n(&hostile.control->tail, value, __ATOMIC_RELAXED); break;
        case 2: /* near where they really are */
            __atomic_fetch_add(&hostile.control->head, random >> 40 & 0x3F8, __ATOMIC_RELAXED);
            break;
        case 3: __atomic_fetch_add(&hostile.control->tail, random >> 40 & 0x3F8, __ATOMIC_RELAXED); break;
        case 4: __atomic_store_n(&hostile.control->reader_sleeps, (uint32_t)value, __ATOMIC_RELAXED); break;
        case 5: __atomic_store_n(&hostile.control->writer_sleeps, (uint32_t)value, __ATOMIC_RELAXED); break;
        default:
            __atomic_store_n((uint32_t *)(void *)(hostile.data + (random >> 40) % (RING / 4) * 4),
                             (uint32_t)(value & 0xFF), __ATOMIC_RELAXED);
        }
        if ((random & 0xFF) == 0)
            sched_yield();
    }
    return NULL;
}

static int test_hostile(double seconds)
{
    static uint8_t bytes[RING];
    uint64_t random = 1, corrupt = 0, taken = 0, put = 0;
    struct timespec begin, now;
    pthread_t thread;
    uint32_t flags = 0;
    set_up(&hostile, 0);
    CHECK(pthread_create(&thread, NULL, scribble, (void *)(uintptr_t)seconds) == 0);
    clock_gettime(CLOCK_MONOTONIC, &begin);
    do {
        for (int turn = 0; turn < 1000; turn++) {
            random = random * 6364136223846793005ull + 1442695040888963407ull;
            uint8_t *to = (uint8_t *)malloc(RING); /* as long as a record can be, and no longer */
            int64_t count = zr_next(&hostile.reader, &flags);
            CHECK(count <= (int64_t)(RING - ZR_HEADER));
            if (count >= 0) {
                zr_take(&hostile.reader, to, (uint32_t)count);
                zr_must_wake_writer(&hostile.reader);
                taken++;
            }
            free(to);
            const int pushed = (int)zr_push_some(&hostile.writer, bytes, (random >> 40) % RING, 0);
            if (pushed >= 0) {
                zr_must_wake_reader(&hostile.writer);
                put++;
            }
            zr_reader_may_sleep(&hostile.reader);
            zr_writer_may_sleep(&hostile.writer, RING / 4);
            if (count == ZR_CORRUPT || pushed == ZR_CORRUPT) { /* the host would give the ring up */
                corrupt++;
                zr_open_writer(&hostile.writer, hostile.control, hostile.data, RING);
                hostile.writer.tail = hostile.writer.head &= ~7ull;
                hostile.reader.tail = hostile.reader.head = hostile.writer.head;
            }
        }
        clock_gettime(CLOCK_MONOTONIC, &now);
    } while ((double)(now.tv_sec - begin.tv_sec) + 1e-9 * (double)(now.tv_nsec - begin.tv_nsec) < seconds);
    __atomic_store_n(&hostile_stop, 1, __ATOMIC_RELAXED);
    pthread_join(thread, NULL);
    tear_down(&hostile);
    CHECK(corrupt > 100 && taken > 100 && put > 100);
    return 0;
}

#ifndef _WIN32

/* -- ends that die ------------------------------------------------------------------------------ */

/* A writer that ends at each of its steps: what is read are whole messages, in order. */
static int test_writer_killed(void)
{
    static uint8_t bytes[RING], got[RING];
    for (long last = 1;; last++) {
        uint32_t flags, message = 0;
        int64_t count;
        int status;
        zr_reader reader;
        uint8_t *shared = (uint8_t *)zs_map(zs_make(2 * RING), 2 * RING);
        const pid_t child = fork();
        if (child == 0) {
            zr_writer writer;
            steps_left = last;
            zr_open_writer(&writer, shared, shared + RING, RING);
            for (uint32_t i = 0; i < 12; i++) {
                fill(bytes, i, 37 * i);
                if (zr_push(&writer, bytes, 37 * i, 0) != ZR_OK)
                    _exit(9);
                zr_must_wake_reader(&writer);
            }
            _exit(0);
        }
        waitpid(child, &status, 0);
        CHECK(WIFEXITED(status) && WEXITSTATUS(status) != 9);
        CHECK(zr_open_reader(&reader, shared, shared + RING, RING) == ZR_OK);
        while ((count = zr_next(&reader, &flags)) >= 0) {
            CHECK(count == 37 * message);
            zr_take(&reader, got, (uint32_t)count);
            CHECK(holds(got, message, (uint64_t)count));
            message++;
        }
        CHECK(count == ZR_EMPTY);
        zs_unmap(shared, 2 * RING);
        if (WEXITSTATUS(status) == 0) {
            CHECK(message == 12 && last > 36);
            return 0;
        }
        CHECK(message <= 12);
    }
}

/* A reader that ends at each of its steps: the writer never loses room, nor overwrites what was not
 * read, and another reader goes on with whole messages. */
static int test_reader_killed(void)
{
    static uint8_t bytes[RING], got[RING];
    for (long last = 1;; last++) {
        uint32_t flags, message = 0, sent = 0;
        int64_t count;
        int status;
        zr_writer writer;
        zr_reader reader;
        uint8_t *shared = (uint8_t *)zs_map(zs_make(2 * RING), 2 * RING);
        zr_open_writer(&writer, shared, shared + RING, RING);
        for (; sent < 10; sent++) {
            fill(bytes, sent, 360);
            CHECK(zr_push(&writer, bytes, 360, 0) == ZR_OK);
        }
        CHECK(zr_writer_may_sleep(&writer, 3000));
        const pid_t child = fork();
        if (child == 0) {
            steps_left = last;
            zr_open_reader(&reader, shared, shared + RING, RING);
            for (uint32_t i = 0; i < 8; i++) {
                count = zr_next(&reader, &flags);
                if (count != 360)
                    _exit(9);
                zr_take(&reader, got, 360);
                if (!holds(got, i, 360))
                    _exit(9);
                zr_must_wake_writer(&reader);
            }
            _exit(0);
        }
        waitpid(child, &status, 0);
        CHECK(WIFEXITED(status) && WEXITSTATUS(status) != 9);
        while (sent < 16) {
            fill(bytes, sent, 360);
            const int pushed = zr_push(&writer, bytes, 360, 0);
            if (pushed != ZR_OK) {
                CHECK(pushed == ZR_FULL);
                break;
            }
            sent++;
        }
        CHECK(zr_open_reader(&reader, shared, shared + RING, RING) == ZR_OK);
        message = (uint32_t)(reader.tail / zr_span(360));
        CHECK(message <= 8);
        while ((count = zr_next(&reader, &flags)) >= 0) {
            CHECK(count == 360);
            zr_take(&reader, got, (uint32_t)count);
            CHECK(holds(got, message++, 360));
        }
        CHECK(count == ZR_EMPTY && message == sent);
        zs_unmap(shared, 2 * RING);
        if (WEXITSTATUS(status) == 0)
            return last < 24;
    }
}

#endif

/* -- the segment -------------------------------------------------------------------------------- */

/* Say what the host announces of a segment to a guest, which then has a handle of its own. */
static void announce(char announced[64], const zs_segment *segment)
{
#ifdef _WIN32
    HANDLE copy = NULL, self = GetCurrentProcess();
    DuplicateHandle(self, segment->handle, self, &copy, 0, TRUE, DUPLICATE_SAME_ACCESS);
    const long long handle = (long long)(intptr_t)copy;
#else
    const long long handle = dup(segment->handle);
#endif
    snprintf(announced, 64, "%lld:%llu", handle, (unsigned long long)segment->size);
}

static int test_segment(void)
{
    char announced[64];
    zs_segment host, guest;
    zr_reader host_reader, guest_reader;
    zr_writer host_writer, guest_writer;
    uint32_t flags;
    CHECK(zs_create(&host, RING, 100000) == 0);
    CHECK(host.header.arena == 3 * RING && host.header.arena_size == 102400);
    CHECK(host.size == 3 * RING + 102400);
#ifndef _WIN32
    CHECK(ftruncate(host.handle, 0) != 0 && ftruncate(host.handle, (off_t)host.size * 2) != 0);
#endif
    announce(announced, &host);
    CHECK(zs_attach(&guest, announced) == 0);
    CHECK(memcmp(&guest.header, &host.header, sizeof host.header) == 0);
    CHECK(zs_open_rings(&host, 1, &host_reader, &host_writer) == ZR_OK);
    CHECK(zs_open_rings(&guest, 0, &guest_reader, &guest_writer) == ZR_OK);
    CHECK(zr_push(&host_writer, "to the guest", 12, 0) == ZR_OK);
    CHECK(zr_next(&guest_reader, &flags) == 12);
    CHECK(zr_push(&guest_writer, "to host", 7, 0) == ZR_OK);
    CHECK(zr_next(&host_reader, &flags) == 7);
    zs_close(&guest);
    CHECK(zs_attach(&guest, NULL) != 0 && zs_attach(&guest, "") != 0 && zs_attach(&guest, "7") != 0);
    CHECK(zs_attach(&guest, "9999:8192") != 0 && zs_attach(&guest, "0:99") != 0);
    for (size_t at = 0; at < 32; at++) { /* a header of another version, or none at all */
        uint8_t right = host.base[at];
        host.base[at] = (uint8_t)(right ^ 0xC0);
        announce(announced, &host);
        if (zs_attach(&guest, announced) == 0)
            zs_close(&guest);
        else
            CHECK(guest.base == NULL);
        host.base[at] = right;
    }
    zs_close(&host);
    return 0;
}

/* -- two threads, for the thread sanitizer ------------------------------------------------------ */

enum { MESSAGES = 200000 };
static ring between;

static void *write_all(void *nothing)
{
    static uint8_t bytes[RING];
    for (uint64_t message = 0; message < MESSAGES; message++) {
        const uint32_t nbytes = (uint32_t)(message * 7 % 100);
        fill(bytes, message, nbytes);
        while (zr_push(&between.writer, bytes, nbytes, 0) == ZR_FULL)
            sched_yield();
        zr_must_wake_reader(&between.writer);
    }
    return nothing;
}

static int test_threads(void)
{
    static uint8_t got[RING];
    pthread_t thread;
    uint32_t flags;
    set_up(&between, (1ull << 32) - 4096);
    CHECK(pthread_create(&thread, NULL, write_all, NULL) == 0);
    for (uint64_t message = 0; message < MESSAGES; message++) {
        int64_t count;
        while ((count = zr_next(&between.reader, &flags)) == ZR_EMPTY) {
            zr_reader_may_sleep(&between.reader);
            sched_yield();
        }
        CHECK(count == (int64_t)(message * 7 % 100));
        zr_take(&between.reader, got, (uint32_t)count);
        CHECK(holds(got, message, (uint64_t)count));
    }
    pthread_join(thread, NULL);
    tear_down(&between);
    return 0;
}

int main(int argc, char **argv)
{
    const double seconds = argc > 1 ? atof(argv[1]) : 1.0;
#ifdef __SANITIZE_THREAD__
    (void)seconds;
    return test_threads(); /* the others race on purpose, or fork */
#endif
    return test_lengths(0) || test_lengths((1ull << 32) - 5 * RING - 8) ||
           test_lengths((uint64_t)0 - 5 * RING - 8) || test_pieces() || test_refusals() ||
#ifndef _WIN32
           test_writer_killed() || test_reader_killed() ||
#endif
           test_segment() || test_threads() || test_hostile(seconds);
}

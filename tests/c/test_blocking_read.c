/* A blocking read that is ended from outside: in time, and without a trace in the data. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif

#include "zeno_blocking_read.h"

#include <stdlib.h>
#include <sys/wait.h>

#define CHECK(condition)                                                  \
    do {                                                                  \
        if (!(condition)) {                                               \
            fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, #condition); \
            exit(1);                                                      \
        }                                                                 \
    } while (0)

enum { TOTAL = 3000000 };

static double seconds(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + (double)now.tv_nsec / 1e9;
}

static unsigned char expected_byte(size_t at)
{
    return (unsigned char)((at * 2654435761U) >> 13);
}

/* Read once, as the pipe does: with the tokens taken out. Returns the number of bytes, or -1 at the
 * end of input. */
static ssize_t read_once(zb_reader *reader, int fd, char *buffer, size_t capacity)
{
    size_t fresh;
    size_t at;
    int marked = 0;
    ssize_t count = zb_read(reader, buffer, capacity / 2, &marked);

    if (!marked)
        return count == 0 ? -1 : count;
    fresh = count > 0 ? (size_t)count : 0;
    for (; marked > 0; marked--) {
        while ((at = zb_find_token(buffer, fresh)) == fresh) {
            count = read(fd, buffer + fresh, capacity - fresh);
            CHECK(count > 0);
            fresh += (size_t)count;
        }
        memmove(buffer + at, buffer + at + ZB_TOKEN_SIZE, fresh - at - ZB_TOKEN_SIZE);
        fresh -= ZB_TOKEN_SIZE;
    }
    return (ssize_t)fresh;
}

static void *write_all(void *argument)
{
    const int fd = *(const int *)argument;
    unsigned char chunk[5000];
    size_t at = 0;

    while (at < TOTAL) {
        size_t size = 1 + at % sizeof chunk;
        size_t index;
        size_t done = 0;

        if (size > TOTAL - at)
            size = TOTAL - at;
        for (index = 0; index < size; index++)
            chunk[index] = expected_byte(at + index);
        while (done < size) {
            const ssize_t count = write(fd, chunk + done, size - done);

            CHECK(count > 0);
            done += (size_t)count;
        }
        at += size;
        if (at % 7 == 0)
            usleep(300);
    }
    close(fd);
    return NULL;
}

struct disturbance {
    zb_reader *reader;
    int stop;
};

static void *disturb(void *argument)
{
    struct disturbance *disturbance = (struct disturbance *)argument;

    while (!__atomic_load_n(&disturbance->stop, __ATOMIC_ACQUIRE)) {
        zb_end(disturbance->reader);
        usleep(20);
    }
    return NULL;
}

static void test_an_idle_read_ends_in_time(void)
{
    int ends[2];
    zb_reader reader;
    char buffer[4096];
    int round;

    CHECK(pipe(ends) == 0);
    CHECK(zb_open(&reader, ends[0]) == 0);
    for (round = 0; round < 5; round++) {
        const double began = seconds();

        CHECK(read_once(&reader, ends[0], buffer, sizeof buffer) == 0);
        CHECK(seconds() - began < 2.0); /* some milliseconds, on a machine that has time */
        if (round == 2)
            usleep(250000); /* the patrol falls asleep, and has to be woken */
    }
    close(ends[1]);
    CHECK(read_once(&reader, ends[0], buffer, sizeof buffer) == -1);
    zb_close(&reader);
    zb_close(&reader);
    close(ends[0]);
}

static void test_what_was_written_is_what_is_read(void)
{
    int ends[2];
    zb_reader reader;
    struct disturbance disturbance;
    pthread_t writer;
    pthread_t disturber;
    size_t at = 0;
    const size_t capacity = 1 << 17;
    char *buffer = (char *)malloc(capacity);

    CHECK(buffer && pipe(ends) == 0);
    CHECK(zb_open(&reader, ends[0]) == 0);
    disturbance.reader = &reader;
    disturbance.stop = 0;
    CHECK(pthread_create(&writer, NULL, write_all, &ends[1]) == 0);
    CHECK(pthread_create(&disturber, NULL, disturb, &disturbance) == 0);
    for (;;) {
        const ssize_t count = read_once(&reader, ends[0], buffer, capacity);
        ssize_t index;

        if (count < 0)
            break;
        for (index = 0; index < count; index++)
            CHECK((unsigned char)buffer[index] == expected_byte(at + (size_t)index));
        at += (size_t)count;
    }
    CHECK(at == TOTAL);
    __atomic_store_n(&disturbance.stop, 1, __ATOMIC_RELEASE);
    pthread_join(writer, NULL);
    pthread_join(disturber, NULL);
    zb_close(&reader);
    close(ends[0]);
    free(buffer);
}

static void test_a_forked_child_is_refused_and_may_open_its_own(void)
{
    int ends[2];
    int status;
    zb_reader reader;
    pid_t child;

    CHECK(pipe(ends) == 0);
    CHECK(zb_open(&reader, ends[0]) == 0);
    child = fork();
    CHECK(child >= 0);
    if (child == 0) {
        char buffer[64];
        int marked;
        zb_reader own;

        if (zb_read(&reader, buffer, sizeof buffer, &marked) != -1 || errno != ENOTSUP)
            _exit(1);
        zb_close(&reader);
        if (zb_open(&own, ends[0]) != 0 || zb_read(&own, buffer, sizeof buffer, &marked) < 0)
            _exit(2);
        _exit(marked ? 0 : 3);
    }
    CHECK(waitpid(child, &status, 0) == child);
    CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0);
    zb_close(&reader);
    close(ends[0]);
    close(ends[1]);
}

int main(void)
{
    test_an_idle_read_ends_in_time();
    test_what_was_written_is_what_is_read();
    test_a_forked_child_is_refused_and_may_open_its_own();
    return 0;
}

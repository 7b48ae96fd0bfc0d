/* A C host over two pipes: the floor under every figure of a sidecar call.
 *
 * usage: pingpong PROGRAM CALLS < REQUEST      time CALLS calls of the program, one after another
 *        pingpong --answer FILE                be a guest that answers every line with that file
 *
 * Prints the nanoseconds of each call, one a line. It writes the request, then reads until the
 * answer's line end; nothing is encoded or decoded.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static int64_t now_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
}

/* Read all of a descriptor; the text ends with a line end. */
static char *read_all(int fd, size_t *size)
{
    size_t capacity = 1 << 16;
    char *text = malloc(capacity);
    *size = 0;
    for (;;) {
        const ssize_t count = read(fd, text + *size, capacity - *size);
        if (count <= 0)
            return text;
        *size += (size_t)count;
        if (*size == capacity)
            text = realloc(text, capacity *= 2);
    }
}

static void write_all(int fd, const char *text, size_t size)
{
    while (size) {
        const ssize_t count = write(fd, text, size);
        if (count < 0 && errno != EINTR)
            exit(1);
        if (count > 0) {
            text += count;
            size -= (size_t)count;
        }
    }
}

/* Read up to and including a line end; what follows it is lost, as nothing may follow. */
static int read_line(int fd, char *buffer, size_t capacity)
{
    for (;;) {
        const ssize_t count = read(fd, buffer, capacity);
        if (count <= 0)
            return 0;
        if (buffer[count - 1] == '\n')
            return 1;
    }
}

static int answer_all(const char *path)
{
    static char buffer[1 << 16];
    size_t size;
    const int fd = open(path, O_RDONLY);
    char *answer = read_all(fd, &size);
    while (read_line(0, buffer, sizeof buffer))
        write_all(1, answer, size);
    return 0;
}

int main(int argc, char **argv)
{
    static char buffer[1 << 16];
    int to_guest[2], to_host[2];
    size_t size;

    if (argc > 2 && strcmp(argv[1], "--answer") == 0)
        return answer_all(argv[2]);
    if (argc < 3 || pipe2(to_guest, O_CLOEXEC) || pipe2(to_host, O_CLOEXEC))
        return 2;
    char *request = read_all(0, &size);
    const long calls = atol(argv[2]);
    int64_t *taken = calloc((size_t)calls, sizeof *taken);
    const pid_t pid = fork();
    if (pid == 0) {
        dup2(to_guest[0], 0);
        dup2(to_host[1], 1);
        execv(argv[1], argc > 3 ? argv + 3 : (char *[]){argv[1], NULL});
        _exit(127);
    }
    close(to_guest[0]);
    close(to_host[1]);
    for (long call = calls < 1000 ? -1 : -1000; call < calls; call++) {
        const int64_t began = now_ns();
        write_all(to_guest[1], request, size);
        if (!read_line(to_host[0], buffer, sizeof buffer))
            return 1;
        if (call >= 0)
            taken[call] = now_ns() - began;
    }
    close(to_guest[1]);
    waitpid(pid, NULL, 0);
    for (long call = 0; call < calls; call++)
        printf("%lld\n", (long long)taken[call]);
    return 0;
}

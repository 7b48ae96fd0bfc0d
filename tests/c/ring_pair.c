/* Two processes and a pair of rings: every message comes back, in order, however both sleep and wake.
 *
 * usage: ring_pair MESSAGES [PAUSE]
 *
 * Starts itself as the other side, as a host starts its sidecar. Messages of 0 to 200 bytes, now and then
 * longer than the ring, up to eight on their way. One in PAUSE is sent after a nap, so that the other side
 * falls asleep first; by default one in 1000. Prints how often each side slept. POSIX and Windows.
 */
#include "zeno_guest.h"

#include <stdio.h>

#ifndef _WIN32
#include <sys/wait.h>
#endif

enum { RING = 4096, LONGEST = 3 * RING, WINDOW = 8 };

static void nap(void)
{
#ifdef _WIN32
    Sleep(1);
#else
    const struct timespec moment = {0, 200000};
    nanosleep(&moment, NULL);
#endif
}

static uint64_t mix(uint64_t n)
{
    n ^= n >> 33;
    n *= 0xff51afd7ed558ccdull;
    return n ^ n >> 29;
}

static size_t length_of(uint64_t message)
{
    const uint64_t random = mix(message + 1);
    return (size_t)(random % 997 ? random >> 32 & 127 : (random >> 32) % LONGEST);
}

static size_t make(char *bytes, uint64_t message)
{
    const size_t nbytes = length_of(message);
    const uint64_t random = mix(message);
    for (size_t at = 0; at < nbytes; at++)
        bytes[at] = (char)(random >> at % 8 * 8 ^ at);
    return nbytes;
}

static int echo(void)
{
    static char copy[LONGEST];
    const char *message;
    int64_t nbytes;
    zg_link link;
    zg_open(&link);
    zg_use_ring(&link);
    if (!link.uses_ring)
        return 2;
    while ((nbytes = zg_receive(&link, &message)) >= 0) {
        memcpy(copy, message, (size_t)nbytes);
        if (zg_send(&link, copy, (size_t)nbytes))
            return 3;
    }
    fprintf(stderr, "%llu ", (unsigned long long)link.sleeps);
    zg_close(&link);
    return nbytes == ZG_ENDED ? 0 : 4;
}

/* Start this program again, without arguments, with two pipes; returns 0 or -1. */
static int start(const char *program, zg_link *link, intptr_t *process)
{
#ifdef _WIN32
    SECURITY_ATTRIBUTES inherited = {sizeof inherited, NULL, TRUE};
    STARTUPINFOA how;
    PROCESS_INFORMATION started;
    HANDLE ends[4];
    char command[1024];
    memset(&how, 0, sizeof how);
    if (!CreatePipe(&ends[0], &ends[1], &inherited, 0) || !CreatePipe(&ends[2], &ends[3], &inherited, 0))
        return -1;
    SetHandleInformation(ends[1], HANDLE_FLAG_INHERIT, 0);
    SetHandleInformation(ends[2], HANDLE_FLAG_INHERIT, 0);
    how.cb = sizeof how;
    how.dwFlags = STARTF_USESTDHANDLES;
    how.hStdInput = ends[0];
    how.hStdOutput = ends[3];
    how.hStdError = GetStdHandle(STD_ERROR_HANDLE);
    snprintf(command, sizeof command, "\"%s\"", program);
    if (!CreateProcessA(NULL, command, NULL, NULL, TRUE, 0, NULL, NULL, &how, &started))
        return -1;
    CloseHandle(ends[0]);
    CloseHandle(ends[3]);
    link->output = ends[1];
    link->input = ends[2];
    *process = (intptr_t)started.hProcess;
#else
    int down[2], up[2];
    if (pipe(down) || pipe(up))
        return -1;
    *process = fork();
    if (*process == 0) {
        fcntl(link->segment.handle, F_SETFD, 0);
        dup2(down[0], 0);
        dup2(up[1], 1);
        close(down[0]), close(down[1]), close(up[0]), close(up[1]);
        execl(program, program, (char *)NULL);
        _exit(9);
    }
    close(down[0]);
    close(up[1]);
    link->output = down[1];
    link->input = up[0];
#endif
    return 0;
}

static int end(zg_link *link, intptr_t process)
{
#ifdef _WIN32
    DWORD status = 1;
    CloseHandle(link->output);
    WaitForSingleObject((HANDLE)process, INFINITE);
    GetExitCodeProcess((HANDLE)process, &status);
    return (int)status;
#else
    int status = 1;
    close(link->output);
    waitpid((pid_t)process, &status, 0);
    return status;
#endif
}

int main(int argc, char **argv)
{
    static char sent[LONGEST], wanted[LONGEST];
    const uint64_t messages = argc > 1 ? strtoull(argv[1], NULL, 10) : 0;
    const uint64_t pause = argc > 2 ? strtoull(argv[2], NULL, 10) : 1000;
    uint64_t out = 0, in = 0;
    char announced[64];
    intptr_t process;
    zg_link link;
    if (argc < 2)
        return echo();
    memset(&link, 0, sizeof link);
    if (zs_create(&link.segment, RING, 0))
        return 5;
#ifdef _WIN32
    snprintf(announced, sizeof announced, "ZENO_SHM=%lld:%llu", (long long)(intptr_t)link.segment.handle,
             (unsigned long long)link.segment.size);
    _putenv(announced);
#else
    snprintf(announced, sizeof announced, "%d:%llu", link.segment.handle,
             (unsigned long long)link.segment.size);
    setenv("ZENO_SHM", announced, 1);
#endif
    if (zs_open_rings(&link.segment, 1, &link.reader, &link.writer) != ZR_OK)
        return 6;
    link.uses_ring = 1;
    if (start(argv[0], &link, &process))
        return 7;
    while (in < messages) {
        const uint64_t window = 1 + mix(out * 3) % WINDOW;
        const char *message;
        int64_t nbytes;
        /* A message longer than the ring is alone: neither side reads while it writes. */
        while (out < messages && out - in < window &&
               (out == in || (length_of(out) < RING / 16 && length_of(in) < RING / 16))) {
            if (mix(out * 7) % pause == 0)
                nap();
            if (zg_send(&link, sent, make(sent, out)))
                return 8;
            out++;
        }
        nbytes = zg_receive(&link, &message);
        if (nbytes < 0 || (size_t)nbytes != make(wanted, in) || memcmp(message, wanted, (size_t)nbytes)) {
            fprintf(stderr, "message %llu is wrong (%lld bytes)\n", (unsigned long long)in, (long long)nbytes);
            return 10;
        }
        in++;
    }
    fprintf(stderr, "%llu ", (unsigned long long)link.sleeps);
    fflush(stderr);
    return end(&link, process);
}

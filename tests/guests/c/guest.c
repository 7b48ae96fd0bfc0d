/* The behaviour guest as a native process in C; also the guest that benchmarks call. */
#define _POSIX_C_SOURCE 200809L
#include <stdio.h>
#include <time.h>

#include "guest_sidecar.h"

#include "behaviour.h"

static const char *guest_name(void)
{
    const char *name = getenv("ZENO_PLUGIN_NAME");
    return name && *name ? name : "c";
}

static void guest_crash(void)
{
    fputs("c guest: crashing as it was told\n", stderr);
    exit(3);
}

static void guest_sleep(double seconds)
{
    struct timespec left = {(time_t)seconds, 0};
    left.tv_nsec = (long)((seconds - (double)left.tv_sec) * 1e9);
    while (nanosleep(&left, &left) && errno == EINTR)
        ;
}

static void guest_noise(int64_t lines)
{
    for (int64_t i = 0; i < lines; i++) {
        printf("noise %d on stdout\n", (int)i);
        fprintf(stderr, "noise %d on stderr\n", (int)i);
    }
    printf("{\"level\":\"info\",\"message\":\"JSON, but no message of the protocol\"}\n[1,2]\n");
    fflush(stdout);
}

int main(int argc, char **argv)
{
    guest_ids = !(argc > 1 && !strcmp(argv[1], "--no-ids"));
    return guest_run();
}

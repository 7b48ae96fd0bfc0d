/* The behaviour guest as a WASM module in C, without a libc. */
#include "guest_wasm.h"

#include "behaviour.h"

#define WASI(name) __attribute__((import_module("wasi_snapshot_preview1"), import_name(name)))

struct iovec {
    const char *data;
    size_t size;
};

WASI("fd_write")
int wasi_write(int fd, const struct iovec *parts, size_t count, size_t *written);
WASI("clock_time_get") int wasi_clock(int clock, uint64_t precision, uint64_t *ns);
__attribute__((import_module("env"), import_name("host_log")))
void host_log(const char *level, size_t level_size, const char *text, size_t size);

static const char *guest_name(void)
{
    return "c-wasm";
}

static void say(int fd, const char *text)
{
    const struct iovec part = {text, js_strlen(text)};
    size_t written;
    wasi_write(fd, &part, 1, &written);
}

static void guest_crash(void)
{
    say(2, "c-wasm guest: crashing as it was told\n");
    __builtin_trap();
}

static void guest_sleep(double seconds)
{
    uint64_t start, now;
    wasi_clock(1, 1, &start);
    do
        wasi_clock(1, 1, &now);
    while ((double)(now - start) < seconds * 1e9);
}

static void guest_noise(int64_t lines)
{
    for (int64_t i = 0; i < lines; i++) {
        say(1, "noise on stdout\n");
        say(2, "noise on stderr\n");
        host_log("info", 4, "noise in the log", 16);
    }
}

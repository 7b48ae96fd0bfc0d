/* A WASM guest with wasi-libc, which uses what WASI gives: streams, clocks, variables, files.
 *
 * Built as a reactor, and as a command whose `main` returns and whose exports are called after it.
 * GUEST_NAME is its name. Files answer with their content, or fail with strerror's words.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "guest_json.h"

#define EXPORT(name) __attribute__((export_name(name), used))

extern char **environ;
static struct js_out answer; /* until the next call */

/* What a slot may be given, as C strings; NULL where it was not. */
struct given {
    char *path, *content, *out, *err, *name, *target;
    size_t content_size, out_size, err_size;
    double status;
};

EXPORT("alloc") void *guest_alloc(size_t size)
{
    return malloc(size);
}

EXPORT("free") void guest_release(void *memory)
{
    free(memory);
}

static char *text_of(struct js value, size_t *size)
{
    const ptrdiff_t length = js_text(value, NULL);
    char *text = length < 0 ? NULL : malloc((size_t)length + 1);
    if (!text)
        return NULL;
    js_text(value, text);
    text[length] = '\0';
    if (size)
        *size = (size_t)length;
    return text;
}

static void fail_with_errno(struct call *call)
{
    call_fail(call, strerror(errno));
}

static uint64_t ns_of(clockid_t clock)
{
    struct timespec time = {0, 0};
    clock_gettime(clock, &time);
    return (uint64_t)time.tv_sec * 1000000000u + (uint64_t)time.tv_nsec;
}

static void slot_print(struct call *call, const struct given *given)
{
    if (given->out)
        fwrite(given->out, 1, given->out_size, stdout);
    fflush(stdout);
    /* In two pieces, as stderr has no buffer. */
    if (given->err) {
        fwrite(given->err, 1, given->err_size / 2, stderr);
        fwrite(given->err + given->err_size / 2, 1, given->err_size - given->err_size / 2, stderr);
    }
    call_data(call);
    out_put(call->out, ferror(stdout) || ferror(stderr) ? "false" : "true");
}

static void slot_time(struct call *call)
{
    uint32_t number = 0;
    if (getentropy(&number, sizeof number)) {
        fail_with_errno(call);
        return;
    }
    call_data(call);
    out_put(call->out, "{\"realtime\":");
    out_int(call->out, (int64_t)ns_of(CLOCK_REALTIME));
    out_put(call->out, ",\"monotonic\":");
    out_int(call->out, (int64_t)ns_of(CLOCK_MONOTONIC));
    out_put(call->out, ",\"random\":");
    out_int(call->out, number);
    out_put(call->out, "}");
}

static void slot_env(struct call *call, const struct given *given)
{
    const char *value = given->name ? getenv(given->name) : NULL;
    int64_t count = 0;
    for (char **variable = environ; variable && *variable; variable++)
        count++;
    call_data(call);
    out_put(call->out, "{\"value\":");
    if (value)
        out_text(call->out, value, strlen(value));
    else
        out_put(call->out, "null");
    out_put(call->out, ",\"count\":");
    out_int(call->out, count);
    out_put(call->out, "}");
}

static void slot_read(struct call *call, const struct given *given)
{
    char *content = NULL;
    size_t size = 0, capacity = 0, n = 1;
    FILE *file = fopen(given->path, "r");
    if (!file) {
        fail_with_errno(call);
        return;
    }
    while (n) {
        if (size == capacity) {
            capacity = capacity * 2 + 4096;
            content = realloc(content, capacity);
        }
        size += n = content ? fread(content + size, 1, capacity - size, file) : 0;
    }
    if (ferror(file)) {
        fail_with_errno(call);
    } else {
        call_data(call);
        out_text(call->out, content ? content : "", size);
    }
    fclose(file);
    free(content);
}

static void slot_write(struct call *call, const struct given *given)
{
    FILE *file = fopen(given->path, "w");
    if (!file) {
        fail_with_errno(call);
        return;
    }
    const size_t written = fwrite(given->content, 1, given->content_size, file);
    if (fclose(file) || written != given->content_size) {
        fail_with_errno(call);
        return;
    }
    call_data(call);
    out_int(call->out, (int64_t)written);
}

static void slot_list(struct call *call, const struct given *given)
{
    DIR *folder = opendir(given->path);
    bool first = true;
    if (!folder) {
        fail_with_errno(call);
        return;
    }
    call_data(call);
    out_put(call->out, "[");
    for (struct dirent *entry; (entry = readdir(folder));) {
        if (!strcmp(entry->d_name, ".") || !strcmp(entry->d_name, ".."))
            continue;
        out_put(call->out, first ? "" : ",");
        out_text(call->out, entry->d_name, strlen(entry->d_name));
        first = false;
    }
    out_put(call->out, "]");
    closedir(folder);
}

static void slot_stat(struct call *call, const struct given *given)
{
    struct stat found;
    if (stat(given->path, &found)) {
        fail_with_errno(call);
        return;
    }
    call_data(call);
    out_put(call->out, S_ISDIR(found.st_mode) ? "{\"kind\":\"folder\"" : "{\"kind\":\"file\"");
    out_put(call->out, ",\"size\":");
    out_int(call->out, found.st_size);
    out_put(call->out, "}");
}

static void slot_symlink(struct call *call, const struct given *given)
{
    if (symlink(given->target, given->path)) {
        fail_with_errno(call);
        return;
    }
    call_data(call);
    out_put(call->out, "true");
}

/* Never end: read a file or print a text again and again, or only count. */
static void slot_loop(const struct given *given)
{
    for (volatile uint64_t n = 0;; n++) {
        FILE *file = given->path ? fopen(given->path, "r") : NULL;
        if (file) {
            fgetc(file);
            fclose(file);
        }
        if (given->out) {
            fwrite(given->out, 1, given->out_size, stdout);
            fflush(stdout);
        }
    }
}

static bool is_slot(struct js slot, const char *name)
{
    return js_equals(slot, name);
}

static void run(struct call *call, struct js value, const struct given *given)
{
    if (is_slot(call->slot, GUEST_NAME ".echo")) {
        call_data(call);
        if (value.at)
            out_raw(call->out, value.at, (size_t)(value.end - value.at));
        else
            out_put(call->out, "null");
    } else if (is_slot(call->slot, GUEST_NAME ".print")) {
        slot_print(call, given);
    } else if (is_slot(call->slot, GUEST_NAME ".time")) {
        slot_time(call);
    } else if (is_slot(call->slot, GUEST_NAME ".env")) {
        slot_env(call, given);
    } else if (is_slot(call->slot, GUEST_NAME ".exit")) {
        exit((int)given->status);
    } else if (is_slot(call->slot, GUEST_NAME ".abort")) {
        abort();
    } else if (is_slot(call->slot, GUEST_NAME ".loop")) {
        slot_loop(given);
    } else if (!given->path) {
        call_fail_value(call, "no path, or an unknown slot ", call->slot);
    } else if (is_slot(call->slot, GUEST_NAME ".read")) {
        slot_read(call, given);
    } else if (is_slot(call->slot, GUEST_NAME ".write") && given->content) {
        slot_write(call, given);
    } else if (is_slot(call->slot, GUEST_NAME ".list")) {
        slot_list(call, given);
    } else if (is_slot(call->slot, GUEST_NAME ".stat")) {
        slot_stat(call, given);
    } else if (is_slot(call->slot, GUEST_NAME ".symlink") && given->target) {
        slot_symlink(call, given);
    } else {
        call_fail_value(call, "unknown slot ", call->slot);
    }
}

EXPORT("plugin_execute")
const char *plugin_execute(const char *name, size_t name_size, const char *text, size_t size)
{
    static const char *const names[] = {"slot_name", "parameters"};
    static const char *const inputs[] = {"value", "path", "content", "out",
                                         "err",   "name", "target",  "status"};
    struct js found[2], values[8];
    (void)name, (void)name_size; /* the request says it too */
    js_members(js_value(text, text + size), names, found, 2);
    js_members(found[1], inputs, values, 8);
    struct given given = {0};
    given.path = text_of(values[1], NULL);
    given.content = text_of(values[2], &given.content_size);
    given.out = text_of(values[3], &given.out_size);
    given.err = text_of(values[4], &given.err_size);
    given.name = text_of(values[5], NULL);
    given.target = text_of(values[6], NULL);
    given.status = js_number(values[7], 0);
    struct call call = {found[0], found[1], &answer};
    answer.size = 0;
    answer.failed = false;
    out_put(&answer, "{");
    run(&call, values[0], &given);
    out_raw(&answer, "}", 2); /* with the terminator */
    free(given.path);
    free(given.content);
    free(given.out);
    free(given.err);
    free(given.name);
    free(given.target);
    return answer.failed ? "{\"success\":false,\"error\":\"out of memory\"}" : answer.data;
}

EXPORT("plugin_init") const char *plugin_init(void)
{
    return "{\"name\":\"" GUEST_NAME "\",\"version\":\"1.0.0\",\"language\":\"C\"}";
}

EXPORT("plugin_register_slots") const char *plugin_register_slots(void)
{
    static const char *const slots[] = {"echo", "print", "time", "env",  "read",    "write",
                                        "list", "stat",  "exit", "abort", "symlink", "loop"};
    answer.size = 0;
    answer.failed = false;
    for (size_t i = 0; i < sizeof slots / sizeof *slots; i++) {
        out_put(&answer, i ? ",{\"name\":\"" GUEST_NAME "." : "[{\"name\":\"" GUEST_NAME ".");
        out_put(&answer, slots[i]);
        out_put(&answer, "\"}");
    }
    out_raw(&answer, "]", 2);
    return answer.data;
}

EXPORT("plugin_cleanup") void plugin_cleanup(void)
{
    free(answer.data);
    answer = (struct js_out){NULL, 0, 0, false};
}

#ifdef GUEST_COMMAND
int main(void)
{
    puts("main has run");
    return 0;
}
#endif

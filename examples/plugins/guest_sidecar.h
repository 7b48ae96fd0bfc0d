/* The loop of a sidecar in C: read lines, answer each with one write. POSIX.
 *
 * With GUEST_RING defined, and the headers of zeno_fast in the compiler's path, messages go through
 * memory that is shared with the host, where the host offers that.
 *
 * The guest defines `plugin_info`, `plugin_slots` and `plugin_slot`, declared below; its `main` is
 * `return guest_run();`.
 */
#ifndef GUEST_SIDECAR_H
#define GUEST_SIDECAR_H

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#ifdef GUEST_RING
#include "zeno_guest.h"
#endif

#include "guest_json.h"

static const char *plugin_info(void);  /* what `plugin_init` answers, as JSON */
static const char *plugin_slots(void); /* what `plugin_register_slots` answers, as JSON */
static void plugin_slot(struct call *call);

/* Whether answers carry `type` and `id`; the protocol allows guests that leave them out. */
static bool guest_ids = true;

#ifdef GUEST_RING
static zg_link guest_link;
#else
static bool guest_write(const char *bytes, size_t count)
{
    while (count) {
        const ssize_t n = write(STDOUT_FILENO, bytes, count);
        if (n < 0 && errno != EINTR)
            return false;
        if (n > 0) {
            bytes += n;
            count -= (size_t)n;
        }
    }
    return true;
}
#endif

static bool guest_serve(struct js_out *answer, const char *line, const char *end)
{
    static const char *const names[] = {"id", "slot_name", "parameters", "type"};
    struct js found[4];
    js_members(js_value(line, end), names, found, 4);
    if (!found[1].at || js_equals(found[3], "host_response"))
        return true; /* a blank line, or an answer to what was never asked */
    struct call call = {found[1], found[2], answer};
    answer->size = 0;
    out_put(answer, "{");
    if (guest_ids && found[0].at) {
        out_put(answer, "\"type\":\"guest_response\",\"id\":");
        out_raw(answer, found[0].at, (size_t)(found[0].end - found[0].at));
        out_put(answer, ",");
    }
    if (js_equals(call.slot, "plugin_init")) {
        call_data(&call);
        out_put(answer, plugin_info());
    } else if (js_equals(call.slot, "plugin_register_slots")) {
        call_data(&call);
        out_put(answer, plugin_slots());
    } else {
        plugin_slot(&call);
    }
#ifdef GUEST_RING
    out_put(answer, "}");
    const bool sent = !answer->failed && !zg_send(&guest_link, answer->data, answer->size);
    if (sent && !guest_link.uses_ring && js_equals(call.slot, "plugin_init") && guest_ids)
        zg_use_ring(&guest_link);
    return sent;
#else
    out_put(answer, "}\n");
    return !answer->failed && guest_write(answer->data, answer->size);
#endif
}

#ifdef GUEST_RING
static int guest_run(void)
{
    struct js_out answer = {NULL, 0, 0, false};
    const char *message;
    int64_t nbytes;
    zg_open(&guest_link);
    while ((nbytes = zg_receive(&guest_link, &message)) >= 0)
        if (!guest_serve(&answer, message, message + nbytes))
            return 1;
    zg_close(&guest_link);
    free(answer.data);
    return 0;
}
#else
/* Serve until the host closes our stdin; return the exit status. */
static int guest_run(void)
{
    struct js_out answer = {NULL, 0, 0, false};
    size_t capacity = 65536, size = 0, searched = 0;
    char *input = (char *)malloc(capacity);
    while (input) {
        const ssize_t n = read(STDIN_FILENO, input + size, capacity - size);
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0)
            break;
        size += (size_t)n;
        char *line = input, *newline;
        while ((newline = (char *)memchr(input + searched, '\n', size - searched))) {
            if (!guest_serve(&answer, line, newline))
                return 1;
            line = newline + 1;
            searched = (size_t)(line - input);
        }
        size -= (size_t)(line - input);
        memmove(input, line, size);
        searched = size;
        if (size == capacity) {
            capacity *= 2;
            char *larger = (char *)realloc(input, capacity);
            if (!larger)
                break;
            input = larger;
        }
    }
    free(input);
    free(answer.data);
    return 0;
}
#endif

#endif

/* Inverts pictures in shared memory, as a sidecar in C or C++. */
#define _POSIX_C_SOURCE 200809L /* which -std=c11 leaves out */
#define GUEST_RING
#include "guest_sidecar.h"

static const char *plugin_info(void)
{
    return JSON({"name": "negative-c", "version": "1.0.0", "features": ["shm", "arena", "binary"]});
}

static const char *plugin_slots(void)
{
    return JSON([{
        "name": "negative-c.invert",
        "description": "Invert every byte of a picture",
        "inputs": {"picture": {"type": "any", "required": true, "description": "Bytes or an array"}}
    }]);
}

/* Find the bytes that were sent: in shared memory, or as base64, then decoded to the heap. */
static uint8_t *take_bytes(struct js sent, int64_t *nbytes, uint8_t **heap)
{
    if (js_is(sent, '[')) {
        struct js items = js_items(sent), offset, size;
        if (!js_next(&items, &offset) || !js_next(&items, &size))
            return NULL;
        *nbytes = (int64_t)js_number(size, -1);
        return (uint8_t *)zg_bytes(&guest_link, (uint64_t)js_number(offset, 0), (uint64_t)*nbytes);
    }
    if (!js_is(sent, '"'))
        return NULL;
    const size_t length = (size_t)(sent.end - sent.at) - 2;
    *heap = (uint8_t *)malloc(length + 1);
    *nbytes = *heap ? zg_decode(*heap, sent.at + 1, length) : -1;
    return *nbytes < 0 ? NULL : *heap;
}

static void invert(struct call *call)
{
    static const char *const names[] = {"$bytes", "dtype", "shape"};
    struct js found[3];
    int64_t nbytes = 0;
    uint64_t offset = 0;
    uint8_t *heap = NULL;
    js_members(js_member(call->parameters, "picture"), names, found, 3);
    uint8_t *bytes = take_bytes(found[0], &nbytes, &heap);
    if (!bytes) {
        call_fail(call, "the picture has to be bytes or an array");
        free(heap);
        return;
    }
    uint8_t *inverted = (uint8_t *)zg_new_bytes(&guest_link, (uint64_t)nbytes, &offset);
    uint8_t *to = inverted ? inverted : bytes; /* without room, where they are, to go as base64 */
    for (int64_t at = 0; at < nbytes; at++)
        to[at] = (uint8_t)~bytes[at];
    call_data(call);
    out_put(call->out, "{\"$bytes\":");
    if (inverted) {
        out_put(call->out, "[");
        out_int(call->out, (int64_t)offset);
        out_put(call->out, ",");
        out_int(call->out, nbytes);
        out_put(call->out, "]");
    } else {
        const size_t size = zg_encoded_size((size_t)nbytes);
        char *text = out_room(call->out, size + 2);
        if (text) {
            text[0] = text[size + 1] = '"';
            zg_encode(text + 1, to, (size_t)nbytes);
            call->out->size += size + 2;
        }
    }
    for (int index = 1; index < 3; index++) {
        if (found[index].at) {
            out_put(call->out, index == 1 ? ",\"dtype\":" : ",\"shape\":");
            out_raw(call->out, found[index].at, (size_t)(found[index].end - found[index].at));
        }
    }
    out_put(call->out, "},\"binary\":true");
    free(heap);
}

static void plugin_slot(struct call *call)
{
    if (js_equals(call->slot, "negative-c.invert"))
        invert(call);
    else
        call_fail_value(call, "unknown slot ", call->slot);
}

int main(void) { return guest_run(); }

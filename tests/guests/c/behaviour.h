/* The slots that every behaviour guest has, for both C guests.
 *
 * A guest gives `guest_name`, `guest_crash`, `guest_sleep` and `guest_noise`.
 */
#ifndef BEHAVIOUR_H
#define BEHAVIOUR_H

#include "guest_json.h"

static const char *guest_name(void);
static void guest_crash(void);
static void guest_sleep(double seconds);
static void guest_noise(int64_t lines);

static const char *plugin_info(void)
{
    static struct js_out info;
    info.size = 0;
    out_put(&info, "{\"name\":\"");
    out_put(&info, guest_name());
    out_put(&info, "\",\"version\":\"1.0.0\",\"author\":\"tests\",\"language\":\"C\"");
#ifdef GUEST_RING
    if (zg_offers_ring(&guest_link))
        out_put(&info, ",\"features\":[\"shm\"]");
#endif
    out_put(&info, "}");
    out_raw(&info, "", 1);
    return info.data;
}

static const char *plugin_slots(void)
{
    static const char *const slots[][3] = {
        {"echo", "Answer the value as it came", JSON({"value": {"type": "any"}})},
        {"size", "Count a text's bytes", JSON({"text": {"type": "string", "required": true}})},
        {"fail", "Fail with a message", JSON({"message": {"type": "string", "required": true}})},
        {"crash", "End without an answer", "{}"},
        {"sleep", "Take a while", JSON({"seconds": {"type": "number", "required": true}})},
        {"spam", "Print noise, then answer", JSON({"lines": {"type": "int", "default": 10}})},
        {"count", "Count the calls so far", "{}"},
    };
    static struct js_out list;
    list.size = 0;
    for (size_t i = 0; i < sizeof slots / sizeof *slots; i++) {
        out_put(&list, i ? ",{\"name\":\"" : "[{\"name\":\"");
        out_put(&list, guest_name());
        out_put(&list, ".");
        out_put(&list, slots[i][0]);
        out_put(&list, "\",\"description\":\"");
        out_put(&list, slots[i][1]);
        out_put(&list, "\",\"inputs\":");
        out_put(&list, slots[i][2]);
        out_put(&list, "}");
    }
    out_raw(&list, "]", 2);
    return list.data;
}

/* Tell whether the slot is the guest's own of that name. */
static bool is_slot(struct js slot, const char *name)
{
    const char *at = slot.end;
    while (at > slot.at && at[-1] != '.')
        at--;
    while (at > slot.at && at < slot.end && *name && *at == *name) {
        at++;
        name++;
    }
    return !*name && slot.end - at == 1; /* all but the closing quote */
}

static void plugin_slot(struct call *call)
{
    static int64_t calls;
    static const char *const names[] = {"value", "text", "message", "seconds", "lines"};
    struct js found[5];
    calls++;
    js_members(call->parameters, names, found, 5);
    if (is_slot(call->slot, "echo")) {
        call_data(call);
        if (found[0].at)
            out_raw(call->out, found[0].at, (size_t)(found[0].end - found[0].at));
        else
            out_put(call->out, "null");
    } else if (is_slot(call->slot, "size")) {
        call_data(call);
        out_int(call->out, js_text(found[1], NULL));
    } else if (is_slot(call->slot, "fail")) {
        call_fail_value(call, "", found[2]);
    } else if (is_slot(call->slot, "crash")) {
        guest_crash();
    } else if (is_slot(call->slot, "sleep")) {
        guest_sleep(js_number(found[3], 0));
        call_data(call);
        out_raw(call->out, found[3].at, (size_t)(found[3].end - found[3].at));
    } else if (is_slot(call->slot, "spam")) {
        const int64_t lines = (int64_t)js_number(found[4], 10);
        guest_noise(lines);
        call_data(call);
        out_int(call->out, lines);
    } else if (is_slot(call->slot, "count")) {
        call_data(call);
        out_int(call->out, calls);
    } else {
        call_fail_value(call, "unknown slot ", call->slot);
    }
}

#endif

/* Slots about places on the globe, as a native process in C. */
#include <math.h>
#include <stdio.h>

#include "../guest_sidecar.h"

static const char *plugin_info(void)
{
    return JSON({
        "name": "geo",
        "version": "1.0.0",
        "author": "The zeno_fast developers",
        "language": "C"
    });
}

static const char *plugin_slots(void)
{
    return JSON([
        {
            "name": "geo.distance",
            "description": "Measure the way between two places, and the course it starts on",
            "example": "{\"from\": {\"lat\": 52.52, \"lon\": 13.4}, \"to\": {\"lat\": 48.86, \"lon\": 2.35}}",
            "inputs": {
                "from": {"type": "object", "required": true, "description": "lat and lon, degrees"},
                "to": {"type": "object", "required": true, "description": "lat and lon, degrees"}
            },
            "outputs": {"km": {"type": "float"}, "bearing": {"type": "float"}}
        },
        {
            "name": "geo.hash",
            "description": "Name the cell of the geohash grid that a place lies in",
            "example": "{\"place\": {\"lat\": 57.64911, \"lon\": 10.40744}}",
            "inputs": {
                "place": {"type": "object", "required": true, "description": "lat and lon, degrees"},
                "length": {
                    "type": "int",
                    "required": false,
                    "default": 9,
                    "description": "Letters, 1 to 12: each makes the cell 32 times smaller"
                }
            },
            "outputs": {"hash": {"type": "string"}}
        }
    ]);
}

#define EARTH_KM 6371.0088
#define RADIANS (3.14159265358979323846 / 180)

struct place {
    double lat, lon;
};

static bool take_place(struct call *call, const char *name, struct place *place)
{
    static const char *const names[] = {"lat", "lon"};
    struct js found[2];
    char message[80];
    js_members(js_member(call->parameters, name), names, found, 2);
    place->lat = js_number(found[0], 1000);
    place->lon = js_number(found[1], 1000);
    if (fabs(place->lat) <= 90 && fabs(place->lon) <= 180)
        return true;
    snprintf(message, sizeof message, "%s needs lat (-90 to 90) and lon (-180 to 180)", name);
    call_fail(call, message);
    return false;
}

static void distance(struct call *call)
{
    struct place a, b;
    char text[80];
    if (!take_place(call, "from", &a) || !take_place(call, "to", &b))
        return;
    const double lat_a = a.lat * RADIANS, lat_b = b.lat * RADIANS;
    const double east = (b.lon - a.lon) * RADIANS;
    const double up = sin((lat_b - lat_a) / 2), side = sin(east / 2);
    const double half = up * up + cos(lat_a) * cos(lat_b) * side * side;
    const double course = atan2(sin(east) * cos(lat_b),
                                cos(lat_a) * sin(lat_b) - sin(lat_a) * cos(lat_b) * cos(east));
    snprintf(text, sizeof text, "{\"km\":%.3f,\"bearing\":%.2f}",
             2 * EARTH_KM * asin(fmin(1, sqrt(half))), fmod(course / RADIANS + 360, 360));
    call_data(call);
    out_put(call->out, text);
}

static void hash(struct call *call)
{
    static const char letters[] = "0123456789bcdefghjkmnpqrstuvwxyz";
    struct place place;
    double low[2] = {-180, -90}, high[2] = {180, 90};
    char cell[13] = "";
    const double length = js_number(js_member(call->parameters, "length"), 9);
    if (!take_place(call, "place", &place))
        return;
    if (!(length >= 1 && length <= 12)) {
        call_fail(call, "length must be 1 to 12");
        return;
    }
    const double target[2] = {place.lon, place.lat};
    for (int i = 0, bit = 0; i < (int)length; i++) {
        int index = 0;
        for (int j = 0; j < 5; j++, bit ^= 1) {
            const double middle = (low[bit] + high[bit]) / 2;
            const bool upper = target[bit] >= middle;
            index = index * 2 + upper;
            *(upper ? &low[bit] : &high[bit]) = middle;
        }
        cell[i] = letters[index];
    }
    call_data(call);
    out_put(call->out, "{\"hash\":");
    out_text(call->out, cell, strlen(cell));
    out_put(call->out, "}");
}

static void plugin_slot(struct call *call)
{
    if (js_equals(call->slot, "geo.distance"))
        distance(call);
    else if (js_equals(call->slot, "geo.hash"))
        hash(call);
    else
        call_fail_value(call, "unknown slot ", call->slot);
}

int main(void)
{
    return guest_run();
}

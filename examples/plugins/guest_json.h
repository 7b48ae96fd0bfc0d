/* JSON for guests in C: find members in a text without a tree, and write answers. C11.
 *
 * A value is a slice of the text it came from (`struct js`), so what is passed through is passed
 * through as it was written. Scanning does not validate: the host sends well-formed JSON, and text
 * that is not makes the functions say "absent", never read outside the slice. Nothing recurses.
 *
 * Memory for answers comes from `guest_realloc(old, old_size, new_size)`: define it before the
 * include, or have <stdlib.h>. Only memory is needed from elsewhere, no library.
 */
#ifndef GUEST_JSON_H
#define GUEST_JSON_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifndef guest_realloc
#include <stdlib.h>
#define guest_realloc(old, old_size, new_size) ((void)(old_size), realloc(old, new_size))
#endif

/* A JSON value as it stands in its text; `at` is NULL where there is none. */
struct js {
    const char *at;
    const char *end;
};

/* A text that grows; `failed` once memory ran out, and nothing is added from then on. */
struct js_out {
    char *data;
    size_t size;
    size_t capacity;
    bool failed;
};

/* JSON as it is, for constants: JSON({"name": "text"}). */
#define JSON(...) #__VA_ARGS__

/* ---- reading ---------------------------------------------------------------------------- */

static inline const char *js_space(const char *at, const char *end)
{
    while (at < end && (*at == ' ' || *at == '\t' || *at == '\n' || *at == '\r'))
        at++;
    return at;
}

/* Return the end of the string that opens at `at`, or NULL where it never closes. */
static inline const char *js_skip_string(const char *at, const char *end)
{
    const uint64_t ones = 0x0101010101010101u, highs = 0x8080808080808080u;
    for (at++; at < end; at++) {
        /* Eight bytes at a time while none of them is a quote or a backslash. */
        while (end - at >= 8) {
            uint64_t word;
            __builtin_memcpy(&word, at, 8);
            const uint64_t quote = word ^ (ones * '"'), slash = word ^ (ones * '\\');
            if ((((quote - ones) & ~quote) | ((slash - ones) & ~slash)) & highs)
                break;
            at += 8;
        }
        if (at == end)
            return NULL;
        if (*at == '"')
            return at + 1;
        if (*at == '\\')
            at++;
    }
    return NULL;
}

/* Return the end of the value that begins at `at`, or NULL where there is none. */
static inline const char *js_skip(const char *at, const char *end)
{
    size_t depth = 0;
    const char *const start = at;
    while (at && at < end) {
        switch (*at) {
        case '"':
            at = js_skip_string(at, end);
            break;
        case '{':
        case '[':
            depth++;
            at++;
            continue;
        case '}':
        case ']':
            if (!depth)
                return at > start ? at : NULL;
            depth--;
            at++;
            break;
        case ',':
        case ':':
        case ' ':
        case '\t':
        case '\n':
        case '\r':
            if (!depth)
                return at > start ? at : NULL;
            at++;
            continue;
        default:
            at++;
            continue;
        }
        if (!depth)
            return at;
    }
    return depth || at == start ? NULL : at;
}

/* Take the value at the start of a text. */
static inline struct js js_value(const char *at, const char *end)
{
    struct js value = {js_space(at, end), NULL};
    value.end = js_skip(value.at, end);
    if (!value.end)
        value.at = NULL;
    return value;
}

static inline bool js_is(struct js value, char first)
{
    return value.at && *value.at == first;
}

static inline int js_hex(const char *at)
{
    int code = 0;
    for (int i = 0; i < 4; i++) {
        const char c = at[i];
        const int digit = c >= '0' && c <= '9'   ? c - '0'
                          : c >= 'a' && c <= 'f' ? c - 'a' + 10
                          : c >= 'A' && c <= 'F' ? c - 'A' + 10
                                                 : -1;
        if (digit < 0)
            return -1;
        code = code * 16 + digit;
    }
    return code;
}

static inline int js_utf8(uint32_t code, char *to)
{
    if (code < 0x80) {
        to[0] = (char)code;
        return 1;
    }
    if (code < 0x800) {
        to[0] = (char)(0xC0 | code >> 6);
        to[1] = (char)(0x80 | (code & 63));
        return 2;
    }
    if (code < 0x10000) {
        to[0] = (char)(0xE0 | code >> 12);
        to[1] = (char)(0x80 | (code >> 6 & 63));
        to[2] = (char)(0x80 | (code & 63));
        return 3;
    }
    to[0] = (char)(0xF0 | code >> 18);
    to[1] = (char)(0x80 | (code >> 12 & 63));
    to[2] = (char)(0x80 | (code >> 6 & 63));
    to[3] = (char)(0x80 | (code & 63));
    return 4;
}

/* Decode one step of a string's inside: one to four bytes to `to`; return how many, `*at` moves.
 *
 * Half of a surrogate pair becomes U+FFFD, as it has no UTF-8 form. */
static inline int js_step(const char **at, const char *end, char *to)
{
    const char c = *(*at)++;
    int code, low;
    if (c != '\\' || *at >= end) {
        to[0] = c;
        return 1;
    }
    const char escape = *(*at)++;
    switch (escape) {
    case 'b':
        to[0] = '\b';
        return 1;
    case 'f':
        to[0] = '\f';
        return 1;
    case 'n':
        to[0] = '\n';
        return 1;
    case 'r':
        to[0] = '\r';
        return 1;
    case 't':
        to[0] = '\t';
        return 1;
    case 'u':
        code = end - *at >= 4 ? js_hex(*at) : -1;
        if (code < 0)
            return js_utf8(0xFFFD, to);
        *at += 4;
        if (code >= 0xD800 && code < 0xDC00 && end - *at >= 6 && (*at)[0] == '\\' &&
            (*at)[1] == 'u') {
            low = js_hex(*at + 2);
            if (low >= 0xDC00 && low < 0xE000) {
                *at += 6;
                return js_utf8(0x10000u + ((uint32_t)(code - 0xD800) << 10) +
                                   (uint32_t)(low - 0xDC00),
                               to);
            }
        }
        return js_utf8(code >= 0xD800 && code < 0xE000 ? 0xFFFD : (uint32_t)code, to);
    default:
        to[0] = escape; /* a quote, a backslash or a slash */
        return 1;
    }
}

/* Decode a string value to UTF-8; return its bytes, or -1 where the value is no string.
 *
 * `to` has room for `value.end - value.at` bytes, which is always enough; NULL only counts. */
static inline ptrdiff_t js_text(struct js value, char *to)
{
    if (!js_is(value, '"'))
        return -1;
    const char *at = value.at + 1;
    const char *const end = value.end - 1;
    ptrdiff_t length = 0;
    char bytes[4];
    while (at < end) {
        if (*at != '\\') {
            if (to)
                to[length] = *at;
            length++;
            at++;
            continue;
        }
        const int n = js_step(&at, end, bytes);
        for (int i = 0; to && i < n; i++)
            to[length + i] = bytes[i];
        length += n;
    }
    return length;
}

/* Tell whether a value is the string `text`, however its escapes are written. */
static inline bool js_equals(struct js value, const char *text)
{
    if (!js_is(value, '"'))
        return false;
    const char *at = value.at + 1;
    const char *const end = value.end - 1;
    char bytes[4];
    while (at < end) {
        const int n = js_step(&at, end, bytes);
        for (int i = 0; i < n; i++)
            if (!*text || *text++ != bytes[i])
                return false;
    }
    return !*text;
}

/* Read a number; `otherwise` where the value is none. Exact up to 2^53 and 22 decimals, which is
 * beyond what lengths, widths and degrees need; past that the last bits may differ from strtod. */
static inline double js_number(struct js value, double otherwise)
{
    if (!value.at || !(js_is(value, '-') || (*value.at >= '0' && *value.at <= '9')))
        return otherwise;
    const char *at = value.at;
    const bool negative = *at == '-';
    double number = 0, scale = 1;
    int exponent = 0, written = 0;
    bool fraction = false, down = false;
    for (at += negative; at < value.end; at++) {
        if (*at >= '0' && *at <= '9') {
            number = number * 10 + (*at - '0');
            exponent -= fraction;
        } else if (*at == '.') {
            fraction = true;
        } else {
            break;
        }
    }
    if (at < value.end && (*at == 'e' || *at == 'E')) {
        at++;
        down = at < value.end && *at == '-';
        at += at < value.end && (*at == '-' || *at == '+');
        for (; at < value.end && *at >= '0' && *at <= '9' && written < 10000; at++)
            written = written * 10 + (*at - '0');
    }
    exponent += down ? -written : written;
    for (int n = exponent < 0 ? -exponent : exponent; n > 0 && scale < 1e300; n--)
        scale *= 10;
    number = exponent < 0 ? number / scale : number * scale;
    return negative ? -number : number;
}

/* Step through the items of an array: begin with `js_items`, go on while `js_next` says so. */
static inline struct js js_items(struct js container)
{
    if (!js_is(container, '[') && !js_is(container, '{'))
        return (struct js){NULL, NULL};
    return (struct js){container.at + 1, container.end - 1};
}

static inline bool js_next(struct js *items, struct js *item)
{
    if (!items->at)
        return false;
    const char *at = js_space(items->at, items->end);
    if (at < items->end && (*at == ',' || *at == ':'))
        at++;
    *item = js_value(at, items->end);
    items->at = item->end;
    return item->at != NULL;
}

/* Find members of an object by name, in one pass; those that are not there get a NULL `at`. */
static inline void js_members(struct js object, const char *const *names, struct js *values,
                              size_t count)
{
    struct js items = js_is(object, '{') ? js_items(object) : (struct js){NULL, NULL};
    struct js key, value;
    for (size_t i = 0; i < count; i++)
        values[i] = (struct js){NULL, NULL};
    while (js_next(&items, &key) && js_next(&items, &value))
        for (size_t i = 0; i < count; i++)
            if (js_equals(key, names[i])) {
                values[i] = value;
                break;
            }
}

static inline struct js js_member(struct js object, const char *name)
{
    struct js value;
    js_members(object, &name, &value, 1);
    return value;
}

/* ---- writing ---------------------------------------------------------------------------- */

static inline size_t js_strlen(const char *text)
{
    size_t n = 0;
    while (text[n])
        n++;
    return n;
}

/* Make room for `more` bytes and return where they go, or NULL where there is no memory. */
static inline char *out_room(struct js_out *out, size_t more)
{
    if (out->failed)
        return NULL;
    if (more > out->capacity - out->size) {
        size_t capacity = out->capacity ? out->capacity * 2 : 4096;
        if (capacity < out->size + more)
            capacity = out->size + more;
        char *data = (char *)guest_realloc(out->data, out->capacity, capacity);
        if (!data) {
            out->failed = true;
            return NULL;
        }
        out->data = data;
        out->capacity = capacity;
    }
    return out->data + out->size;
}

/* Add bytes as they are. */
static inline void out_raw(struct js_out *out, const char *bytes, size_t count)
{
    char *to = out_room(out, count);
    if (to && count) {
        __builtin_memcpy(to, bytes, count);
        out->size += count;
    }
}

static inline void out_put(struct js_out *out, const char *text)
{
    out_raw(out, text, js_strlen(text));
}

/* Add UTF-8 text as a JSON string. */
static inline void out_text(struct js_out *out, const char *text, size_t count)
{
    static const char hex[] = "0123456789abcdef";
    out_raw(out, "\"", 1);
    for (size_t i = 0, done = 0; i <= count; i++) {
        const unsigned char c = i < count ? (unsigned char)text[i] : 0;
        if (i < count && c >= 0x20 && c != '"' && c != '\\')
            continue;
        out_raw(out, text + done, i - done);
        done = i + 1;
        if (i == count)
            break;
        if (c == '"' || c == '\\') {
            const char escape[] = {'\\', (char)c};
            out_raw(out, escape, 2);
        } else {
            const char escape[] = {'\\', 'u', '0', '0', hex[c >> 4], hex[c & 15]};
            out_raw(out, escape, 6);
        }
    }
    out_raw(out, "\"", 1);
}

static inline void out_int(struct js_out *out, int64_t number)
{
    char digits[24];
    size_t at = sizeof digits;
    uint64_t rest = number < 0 ? 0 - (uint64_t)number : (uint64_t)number;
    do {
        digits[--at] = (char)('0' + rest % 10);
        rest /= 10;
    } while (rest);
    if (number < 0)
        digits[--at] = '-';
    out_raw(out, digits + at, sizeof digits - at);
}

/* ---- one slot call ---------------------------------------------------------------------- */

/* What a slot gets: its name, its parameters, and where the answer goes.
 *
 * A slot writes either `call_data` and after it one JSON value, or `call_fail`. */
struct call {
    struct js slot;
    struct js parameters;
    struct js_out *out;
};

static inline void call_data(struct call *call)
{
    out_put(call->out, "\"success\":true,\"data\":");
}

static inline void call_fail(struct call *call, const char *message)
{
    out_put(call->out, "\"success\":false,\"data\":null,\"error\":");
    out_text(call->out, message, js_strlen(message));
}

/* Fail with a message and a JSON value after it, such as the unknown slot's name. */
static inline void call_fail_value(struct call *call, const char *message, struct js value)
{
    out_put(call->out, "\"success\":false,\"data\":null,\"error\":\"");
    out_put(call->out, message);
    if (js_is(value, '"')) /* its inside is already escaped */
        out_raw(call->out, value.at + 1, (size_t)(value.end - value.at) - 2);
    out_put(call->out, "\"");
}

#endif

/* Slots about text, in C without a library: the module is a few KB and imports nothing. */
#include "../guest_wasm.h"

static const char *plugin_info(void)
{
    return JSON({
        "name": "text",
        "version": "1.0.0",
        "author": "The zeno_fast developers",
        "language": "C"
    });
}

static const char *plugin_slots(void)
{
    return JSON([
        {
            "name": "text.stats",
            "description": "Count the bytes, characters, words and lines of a text",
            "example": "{\"text\": \"to be or\\nnot to be\"}",
            "inputs": {
                "text": {"type": "string", "required": true, "description": "The text to count"}
            },
            "outputs": {
                "bytes": {"type": "int"},
                "characters": {"type": "int"},
                "words": {"type": "int"},
                "lines": {"type": "int"}
            }
        },
        {
            "name": "text.wrap",
            "description": "Break a text into lines of at most so many characters",
            "example": "{\"text\": \"the quick brown fox\", \"width\": 10}",
            "inputs": {
                "text": {"type": "string", "required": true, "description": "The text to wrap"},
                "width": {
                    "type": "int",
                    "required": false,
                    "default": 72,
                    "description": "Characters in a line; a longer word gets a line of its own"
                }
            },
            "outputs": {"lines": {"type": "list"}}
        },
        {
            "name": "text.distance",
            "description": "Count the edits that turn one text into the other (Levenshtein)",
            "example": "{\"a\": \"kitten\", \"b\": \"sitting\"}",
            "inputs": {
                "a": {"type": "string", "required": true, "description": "One text"},
                "b": {"type": "string", "required": true, "description": "The other"}
            },
            "outputs": {"distance": {"type": "int"}}
        }
    ]);
}

/* Decoded text, in memory of its own. */
struct text {
    char *bytes;
    size_t size;
};

static bool text_take(struct js value, struct text *text)
{
    const ptrdiff_t size = js_text(value, NULL);
    text->bytes = size < 0 ? NULL : (char *)guest_alloc((uint32_t)size + 1);
    if (!text->bytes)
        return false;
    text->size = (size_t)js_text(value, text->bytes);
    return true;
}

static bool is_space(char c)
{
    return c == ' ' || c == '\n' || c == '\t' || c == '\r' || c == '\f' || c == '\v';
}

static bool is_first_byte(char c)
{
    return ((unsigned char)c & 0xC0) != 0x80;
}

static void stats(struct call *call, struct text text)
{
    int64_t characters = 0, words = 0, lines = 0;
    bool inside = false;
    for (size_t i = 0; i < text.size; i++) {
        const char c = text.bytes[i];
        characters += is_first_byte(c);
        lines += c == '\n';
        words += !inside && !is_space(c);
        inside = !is_space(c);
    }
    lines += text.size && text.bytes[text.size - 1] != '\n';
    call_data(call);
    out_put(call->out, "{\"bytes\":");
    out_int(call->out, (int64_t)text.size);
    out_put(call->out, ",\"characters\":");
    out_int(call->out, characters);
    out_put(call->out, ",\"words\":");
    out_int(call->out, words);
    out_put(call->out, ",\"lines\":");
    out_int(call->out, lines);
    out_put(call->out, "}");
}

/* Lines are joined in place: each word is moved behind the one before it. */
static void wrap(struct call *call, struct text text, double width)
{
    size_t at = 0, filled = 0;
    double used = 0;
    bool first = true;
    if (!(width >= 1)) {
        call_fail(call, "width must be at least 1");
        return;
    }
    call_data(call);
    out_put(call->out, "{\"lines\":[");
    for (;;) {
        while (at < text.size && is_space(text.bytes[at]))
            at++;
        size_t end = at;
        double length = 0;
        for (; end < text.size && !is_space(text.bytes[end]); end++)
            length += is_first_byte(text.bytes[end]);
        if (filled && (end == at || used + 1 + length > width)) {
            out_put(call->out, first ? "" : ",");
            out_text(call->out, text.bytes, filled);
            first = false;
            filled = 0;
            used = 0;
        }
        if (end == at)
            break;
        if (filled) {
            text.bytes[filled++] = ' ';
            used++;
        }
        while (at < end)
            text.bytes[filled++] = text.bytes[at++];
        used += length;
    }
    out_put(call->out, "]}");
}

/* Spread UTF-8 to one code point an entry; return how many. */
static size_t spread(struct text text, uint32_t *points)
{
    size_t count = 0;
    for (size_t i = 0; i < text.size; i++) {
        const unsigned char c = (unsigned char)text.bytes[i];
        if (is_first_byte(text.bytes[i]))
            points[count++] = c;
        else if (count)
            points[count - 1] = points[count - 1] << 8 | c; /* distinct is all that matters */
    }
    return count;
}

static void distance(struct call *call, struct text a, struct text b)
{
    if ((uint64_t)a.size * b.size > 100000000u) {
        call_fail(call, "the texts are too long to compare");
        return;
    }
    uint32_t *const as = (uint32_t *)guest_alloc((uint32_t)(a.size * 4 + b.size * 8 + 16));
    if (!as) {
        call_fail(call, "out of memory");
        return;
    }
    uint32_t *const bs = as + a.size, *const row = bs + b.size;
    const size_t rows = spread(a, as), columns = spread(b, bs);
    for (size_t j = 0; j <= columns; j++)
        row[j] = (uint32_t)j;
    for (size_t i = 1; i <= rows; i++) {
        uint32_t diagonal = row[0];
        row[0] = (uint32_t)i;
        for (size_t j = 1; j <= columns; j++) {
            const uint32_t above = row[j], left = row[j - 1];
            uint32_t best = diagonal + (as[i - 1] != bs[j - 1]);
            if (above + 1 < best)
                best = above + 1;
            if (left + 1 < best)
                best = left + 1;
            row[j] = best;
            diagonal = above;
        }
    }
    call_data(call);
    out_put(call->out, "{\"distance\":");
    out_int(call->out, row[columns]);
    out_put(call->out, "}");
    guest_release(as);
}

static void plugin_slot(struct call *call)
{
    static const char *const names[] = {"text", "width", "a", "b"};
    struct js found[4];
    struct text text = {NULL, 0}, other = {NULL, 0};
    js_members(call->parameters, names, found, 4);
    if (js_equals(call->slot, "text.stats") || js_equals(call->slot, "text.wrap")) {
        if (!text_take(found[0], &text))
            call_fail(call, "text must be a string");
        else if (js_equals(call->slot, "text.stats"))
            stats(call, text);
        else
            wrap(call, text, js_number(found[1], 72));
    } else if (js_equals(call->slot, "text.distance")) {
        if (!text_take(found[2], &text) || !text_take(found[3], &other))
            call_fail(call, "a and b must be strings");
        else
            distance(call, text, other);
    } else {
        call_fail_value(call, "unknown slot ", call->slot);
    }
    guest_release(text.bytes);
    guest_release(other.bytes);
}

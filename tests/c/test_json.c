/* Checks zeno_json.h; prints nothing and returns 0 when all is well. C11 and C++17. */
#include "zeno_json.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct expectation {
    const char *text;
    size_t end;
};

static const struct expectation EXPECTED[] = {
    {"", 0},
    {"  ", 0},
    {"{}", 2},
    {" \t\r\n[]x", 6},
    {"{\"a\":1}{\"b\":2}", 7},
    {"{\"a\":\"}\"}]", 9},
    {"{\"a\":\"\\\"}\"}]", 11},
    {"{\"a\":\"\\\\\"}]", 10},
    {"{\"a\":[{\"b\":[]}]}rest", 16},
    {"{\"a\":", 0},
    {"{\"a\":\"}", 0},
    {"{\"a\":\"\\", 0},
    {"\"text\"x", 6},
    {"\"te", 0},
    {"\"te\\\"", 0},
    {"12,", 2},
    {"-1.5e+7]", 7},
    {"true}", 4},
    {"null", 4},
    {"}", 0},
    {"]", 0},
    {",", 0},
    {"\xff\xfe", 0},
    {"[\"\xff\"]\xff", 5},
};

static int failures = 0;

/* The text is copied to the end of a block, so that a sanitizer sees one byte too far. */
static size_t end_of(const char *text, size_t n)
{
    char *const copy = (char *)malloc(n + 1);
    size_t end;

    if (copy == NULL)
        abort();
    memcpy(copy + 1, text, n);
    end = zj_value_end(copy + 1, n);
    free(copy);
    return end;
}

static void expect(const char *text, size_t n, size_t expected)
{
    const size_t end = end_of(text, n);

    if (end != expected) {
        printf("%.40s (%zu bytes): %zu, not %zu\n", text, n, end, expected);
        failures++;
    }
}

/* Every prefix of a value is incomplete, and whatever follows it changes nothing. */
static void check_prefixes(void)
{
    static const char value[] = "{\"a\":[1,{\"b\\\\\\\"\":\"x]}\"},[[]]],\"c\":null}";
    const size_t n = sizeof value - 1;
    char longer[sizeof value + 1];
    size_t at;
    int byte;

    for (at = 0; at < n; at++)
        expect(value, at, 0);
    memcpy(longer, value, n);
    for (byte = 0; byte < 256; byte++) {
        longer[n] = (char)(unsigned char)byte;
        expect(longer, n + 1, n);
    }
}

static void check_depth(void)
{
    const size_t depth = 1000000;
    char *const text = (char *)malloc(2 * depth);

    if (text == NULL)
        abort();
    memset(text, '[', depth);
    memset(text + depth, ']', depth);
    expect(text, depth, 0);
    expect(text, 2 * depth - 1, 0);
    expect(text, 2 * depth, 2 * depth);
    free(text);
}

/* Any bytes at all: no read outside of them, and no end beyond them. */
static void check_noise(void)
{
    static const char letters[] = "{}[]\"\\:,19ae \n\xff";
    unsigned long long state = 88172645463325252ULL;
    char text[64];
    int round;

    for (round = 0; round < 200000; round++) {
        size_t n, at, end;
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        n = (size_t)(state % sizeof text);
        for (at = 0; at < n; at++) {
            state = state * 6364136223846793005ULL + 1442695040888963407ULL;
            text[at] = letters[(state >> 33) % (sizeof letters - 1)];
        }
        end = end_of(text, n);
        if (end > n || (end != 0 && end_of(text, end) != end)) {
            printf("%.*s: %zu\n", (int)n, text, end);
            failures++;
        }
    }
}

int main(void)
{
    size_t i;

    for (i = 0; i < sizeof EXPECTED / sizeof EXPECTED[0]; i++)
        expect(EXPECTED[i].text, strlen(EXPECTED[i].text), EXPECTED[i].end);
    check_prefixes();
    check_depth();
    check_noise();
    return failures == 0 ? 0 : 1;
}

/* Where one JSON value ends, for answers that no terminator follows.
 *
 * Header only, C11 and C++17. No allocation, no recursion, no errno; the text
 * is borrowed for the call and never read past its length. Only strings and
 * nesting are tracked: what lies between is left to a real parser, so that
 * garbage inside a value is found there, and garbage behind it is not.
 */
#ifndef ZENO_JSON_H
#define ZENO_JSON_H

#include <stddef.h>

#ifdef __cplusplus
extern "C" {
#endif

static inline int zj_is_space(char c)
{
    return c == ' ' || c == '\t' || c == '\n' || c == '\r';
}

/* Whether a number or a literal may go on with `c`. */
static inline int zj_is_scalar(char c)
{
    return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'z') || c == 'E' ||
           c == '+' || c == '-' || c == '.';
}

/* Return the index behind the string whose first quote is p[at], or 0. */
static inline size_t zj_string_end(const char *p, size_t n, size_t at)
{
    for (at++; at < n; at++) {
        if (p[at] == '"')
            return at + 1;
        if (p[at] == '\\')
            at++;
    }
    return 0;
}

/* Return the index one past the JSON value that begins at `p`, after white
 * space, or 0 where none is complete within `n` bytes.
 *
 * A number or literal at the very end of the text counts as complete. Opening
 * and closing brackets are counted together, not matched: text in which they
 * do not fit each other is no JSON, wherever it ends.
 */
static inline size_t zj_value_end(const char *p, size_t n)
{
    size_t depth = 0;
    size_t at = 0;

    while (at < n && zj_is_space(p[at]))
        at++;
    if (at == n)
        return 0;
    if (p[at] == '"')
        return zj_string_end(p, n, at);
    if (p[at] != '{' && p[at] != '[') {
        const size_t start = at;
        while (at < n && zj_is_scalar(p[at]))
            at++;
        return at > start ? at : 0;
    }
    while (at < n) {
        const char c = p[at];
        if (c == '"') {
            at = zj_string_end(p, n, at);
            if (at == 0)
                return 0;
            continue;
        }
        at++;
        if (c == '{' || c == '[') {
            depth++;
        } else if (c == '}' || c == ']') {
            depth--;
            if (depth == 0)
                return at;
        }
    }
    return 0;
}

#ifdef __cplusplus
}
#endif

#endif

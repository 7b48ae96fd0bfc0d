/* A sidecar that notes in a file what it has done, before it says so.
 *
 * Reads requests as zeno_fast writes them; appends the number of each `work` and `safe` to the file
 * `ledger` in one write, and answers with it. With --no-ids its answers have no ids; with --ring they
 * go through shared memory.
 */
#include "zeno_guest.h"

#include <stdio.h>

/* Copy the text between `before` and the next quote, comma or brace. Returns whether it is there. */
static int find(const char *line, const char *before, char *text, size_t size)
{
    const char *from = strstr(line, before);
    if (!from)
        return 0;
    from += strlen(before);
    const size_t length = strcspn(from, "\",}");
    if (length >= size)
        return 0;
    memcpy(text, from, length);
    text[length] = 0;
    return 1;
}

int main(int argc, char **argv)
{
    const int ledger = open("ledger", O_WRONLY | O_APPEND | O_CREAT, 0644);
    const int has_ids = argc < 2 || strcmp(argv[1], "--no-ids") != 0;
    const int has_ring = argc > 1 && strcmp(argv[1], "--ring") == 0;
    static char line[1 << 16];
    char answer[256], id[64], number[32], note[40];
    const char *message;
    int64_t nbytes;
    zg_link link;
    zg_open(&link);
    while ((nbytes = zg_receive(&link, &message)) >= 0) {
        const char *data = "{}";
        int length;
        if ((size_t)nbytes >= sizeof line)
            return 4;
        memcpy(line, message, (size_t)nbytes);
        line[nbytes] = 0;
        if (!find(line, "\"id\":\"", id, sizeof id))
            return 2;
        if (find(line, "\"n\":", number, sizeof number)) {
            length = snprintf(note, sizeof note, "%s\n", number);
            if (write(ledger, note, (size_t)length) != length)
                return 3;
            data = number;
        }
        const int starts_ring = has_ring && strstr(line, "\"plugin_init\"");
        if (has_ids)
            length = snprintf(
                answer, sizeof answer,
                "{\"type\":\"guest_response\",\"id\":\"%s\",\"success\":true,\"data\":%s}", id,
                starts_ring ? "{\"features\":[\"shm\"]}" : data);
        else
            length = snprintf(answer, sizeof answer, "{\"success\":true,\"data\":%s}", data);
        if (zg_send(&link, answer, (size_t)length))
            return 5;
        if (starts_ring)
            zg_use_ring(&link);
    }
    zg_close(&link);
    return 0;
}

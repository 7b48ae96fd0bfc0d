/* A sidecar that notes in a file what it has done, before it says so.
 *
 * Reads requests as zeno_fast writes them; appends the number of each `work` and `safe` to the file
 * `ledger` in one write, and answers with it. With an argument, its answers have no ids.
 */
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

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
    static char line[1 << 16];
    char id[64], number[32], note[40];
    (void)argv;

    while (fgets(line, sizeof line, stdin)) {
        const char *data = "{}";
        if (!find(line, "\"id\":\"", id, sizeof id))
            return 2;
        if (find(line, "\"n\":", number, sizeof number)) {
            const int length = snprintf(note, sizeof note, "%s\n", number);
            if (write(ledger, note, (size_t)length) != length)
                return 3;
            data = number;
        }
        if (argc > 1)
            printf("{\"success\":true,\"data\":%s}\n", data);
        else
            printf("{\"type\":\"guest_response\",\"id\":\"%s\",\"success\":true,\"data\":%s}\n", id, data);
        fflush(stdout);
    }
    return 0;
}

/* zeno_guest.c - zeno_guest.h as functions with external linkage, for languages that link to C.
 *
 * A link is an opaque pointer here; what the functions do is described where they are defined.
 */
#include "zeno_guest.h"

#ifdef __cplusplus
extern "C" {
#endif

zg_link *zeno_guest_new(void);
void zeno_guest_free(zg_link *link);
int zeno_guest_offers_ring(const zg_link *link);
int zeno_guest_offers_arena(const zg_link *link);
void zeno_guest_use_ring(zg_link *link);
int64_t zeno_guest_receive(zg_link *link, const char **message);
int zeno_guest_send(zg_link *link, const char *message, size_t nbytes);
void *zeno_guest_bytes(zg_link *link, uint64_t offset, uint64_t nbytes);
void *zeno_guest_new_bytes(zg_link *link, uint64_t nbytes, uint64_t *offset);
void zeno_guest_drop_bytes(zg_link *link, uint64_t offset);
int zeno_guest_offers_buffers(const zg_link *link);
void *zeno_guest_buffer_bytes(zg_link *link, uint64_t id, uint64_t offset, uint64_t nbytes);
void zeno_guest_forget_buffer(zg_link *link, uint64_t id);

/* Return an open link, or NULL where there is no memory. */
zg_link *zeno_guest_new(void)
{
    zg_link *link = (zg_link *)malloc(sizeof *link);
    if (link)
        zg_open(link);
    return link;
}

void zeno_guest_free(zg_link *link)
{
    if (link)
        zg_close(link);
    free(link);
}

int zeno_guest_offers_ring(const zg_link *link) { return zg_offers_ring(link); }
int zeno_guest_offers_arena(const zg_link *link) { return zg_offers_arena(link); }
void zeno_guest_use_ring(zg_link *link) { zg_use_ring(link); }
int64_t zeno_guest_receive(zg_link *link, const char **message) { return zg_receive(link, message); }
int zeno_guest_send(zg_link *link, const char *message, size_t nbytes)
{
    return zg_send(link, message, nbytes);
}
void *zeno_guest_bytes(zg_link *link, uint64_t offset, uint64_t nbytes)
{
    return zg_bytes(link, offset, nbytes);
}
void *zeno_guest_new_bytes(zg_link *link, uint64_t nbytes, uint64_t *offset)
{
    return zg_new_bytes(link, nbytes, offset);
}
void zeno_guest_drop_bytes(zg_link *link, uint64_t offset) { zg_drop_bytes(link, offset); }
int zeno_guest_offers_buffers(const zg_link *link) { return zg_offers_buffers(link); }
void *zeno_guest_buffer_bytes(zg_link *link, uint64_t id, uint64_t offset, uint64_t nbytes)
{
    return zg_buffer_bytes(link, id, offset, nbytes);
}
void zeno_guest_forget_buffer(zg_link *link, uint64_t id) { zg_forget_buffer(link, id); }

#ifdef __cplusplus
}
#endif

/* The exports of a WASM guest in C without any library: memory, `alloc`, `free`, `plugin_*`.
 *
 * The guest defines `plugin_info`, `plugin_slots` and `plugin_slot`, declared below. Build with
 * -ffreestanding -nostdlib -mbulk-memory -Wl,--no-entry; the module then imports nothing.
 */
#ifndef GUEST_WASM_H
#define GUEST_WASM_H

#include <stddef.h>
#include <stdint.h>

#define GUEST_EXPORT(name) __attribute__((export_name(name), used))
#define GUEST_PAGE 65536u

/* Blocks are powers of two with their class in front; freed ones wait in a list for their class. */
struct guest_block {
    uint32_t class;
    uint32_t unused; /* keeps what follows aligned to eight */
};

extern unsigned char __heap_base;
static uintptr_t guest_top;
static struct guest_block *guest_free[32];

GUEST_EXPORT("alloc") void *guest_alloc(uint32_t size)
{
    uint32_t class = 5;
    while (class < 31 && ((uint32_t)1 << class) - sizeof(struct guest_block) < size)
        class++;
    if (class == 31)
        return NULL;
    struct guest_block *block = guest_free[class];
    if (block) {
        __builtin_memcpy((void *)&guest_free[class], block + 1, sizeof(void *));
        return block + 1;
    }
    if (!guest_top)
        guest_top = ((uintptr_t)&__heap_base + 15) & ~(uintptr_t)15;
    const uint64_t top = (uint64_t)guest_top + ((uint64_t)1 << class);
    const uint64_t have = (uint64_t)__builtin_wasm_memory_size(0) * GUEST_PAGE;
    if (top > have) {
        const uint64_t pages = (top - have + GUEST_PAGE - 1) / GUEST_PAGE;
        if (__builtin_wasm_memory_grow(0, (size_t)pages) == (size_t)-1)
            return NULL;
    }
    block = (struct guest_block *)guest_top;
    guest_top = (uintptr_t)top;
    block->class = class;
    return block + 1;
}

GUEST_EXPORT("free") void guest_release(void *memory)
{
    if (!memory)
        return;
    struct guest_block *block = (struct guest_block *)memory - 1;
    __builtin_memcpy(memory, (void *)&guest_free[block->class], sizeof(void *));
    guest_free[block->class] = block;
}

static void *guest_grow(void *old, size_t old_size, size_t size)
{
    void *memory = guest_alloc((uint32_t)size);
    if (memory && old) {
        __builtin_memcpy(memory, old, old_size);
        guest_release(old);
    }
    return memory;
}

#define guest_realloc(old, old_size, new_size) guest_grow(old, old_size, new_size)
#include "guest_json.h"

static const char *plugin_info(void);  /* what `plugin_init` answers, as JSON */
static const char *plugin_slots(void); /* what `plugin_register_slots` answers, as JSON */
static void plugin_slot(struct call *call);

/* The answer lives here until the next call; the host never frees it. */
static struct js_out guest_answer;

GUEST_EXPORT("plugin_execute")
const char *plugin_execute(const char *name, uint32_t name_size, const char *text, uint32_t size)
{
    static const char *const names[] = {"slot_name", "parameters"};
    struct js found[2];
    (void)name, (void)name_size; /* the request says it too */
    js_members(js_value(text, text + size), names, found, 2);
    struct call call = {found[0], found[1], &guest_answer};
    guest_answer.size = 0;
    guest_answer.failed = false;
    out_put(&guest_answer, "{");
    plugin_slot(&call);
    out_raw(&guest_answer, "}", 2); /* with the terminator */
    if (guest_answer.failed)
        return "{\"success\":false,\"error\":\"out of memory\"}";
    return guest_answer.data;
}

GUEST_EXPORT("plugin_init") const char *plugin_init(void)
{
    return plugin_info();
}

GUEST_EXPORT("plugin_register_slots") const char *plugin_register_slots(void)
{
    return plugin_slots();
}

GUEST_EXPORT("plugin_cleanup") void plugin_cleanup(void)
{
    guest_release(guest_answer.data);
    guest_answer = (struct js_out){NULL, 0, 0, false};
}

#endif

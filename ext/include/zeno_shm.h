/* zeno_shm.h - the shared memory between a host and its sidecars: rings for messages, arenas for bytes.
 *
 * C11 or C++17; Linux, macOS and Windows. The host makes all of it, without a name, or with one that
 * is gone at once. A sidecar inherits a segment of its own, which it finds by the environment variable
 * ZENO_SHM, and by ZENO_ARENA the memory in which the host puts bytes for all processes of its plugin.
 * The value of either is "HANDLE:SIZE", two decimal numbers: a descriptor (on Windows a handle) and
 * bytes.
 *
 * Layout of the segment, version 1, little-endian, offsets in bytes from its begin:
 *
 *        0  8 bytes  "ZENOSHM" and a zero byte
 *        8  u32      version, 1
 *       12  u32      ring size R, a power of two
 *       16  u64      offset A of the arena for what the guest writes, a multiple of 4096
 *       24  u64      its size
 *      256  control block of the ring from host to guest (zeno_ring.h)
 *      512  control block of the ring from guest to host
 *     4096  data of the first ring, R bytes, and then of the second
 *        A  the guest's arena
 *
 * The first 64 bytes are the host's and do not change; it never reads them. The memory of ZENO_ARENA
 * has no layout: its first byte has the offset 0.
 *
 * Each arena belongs to one side, which alone decides what lies where, and tells the other by a
 * message: `{"$bytes":[OFFSET,NBYTES]}`. Offsets are multiples of 64. What the host puts into its arena
 * is the guest's until it has answered the call that came with it. Before each block of the guest's
 * are 64 bytes, of which the first four are a u32: 1 while the block is in use; the host makes it 0 when
 * nobody looks at it any more.
 *
 * Arenas take memory only where they were written to.
 */
#ifndef ZENO_SHM_H
#define ZENO_SHM_H

#if defined(__linux__) && !defined(_GNU_SOURCE)
#define _GNU_SOURCE 1 /* for memfds and their seals: include this before the system's headers */
#endif

#include "zeno_ring.h"

#include <stdlib.h>

#ifdef _WIN32
#ifndef WIN32_LEAN_AND_MEAN
#define WIN32_LEAN_AND_MEAN
#endif
#include <windows.h>
typedef HANDLE zs_handle;
#define ZS_NO_HANDLE NULL
#else
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>
#if defined(__linux__)
#include <sys/syscall.h>
#ifndef __cplusplus
extern long syscall(long number, ...); /* which a program that asks for POSIX alone does not see */
#endif
#endif
typedef int zs_handle;
#define ZS_NO_HANDLE (-1)
#endif

#ifdef __cplusplus
extern "C" {
#endif

enum { ZS_VERSION = 1, ZS_TO_GUEST = 256, ZS_TO_HOST = 512, ZS_RINGS = 4096, ZS_BLOCK_HEADER = 64 };

typedef struct zs_header {
    char magic[8];
    uint32_t version;
    uint32_t ring_size;
    uint64_t arena, arena_size;
} zs_header;

typedef struct zs_segment {
    uint8_t *base; /* NULL where nothing is mapped */
    uint64_t size;
    zs_handle handle; /* ZS_NO_HANDLE where it is not held */
    zs_header header; /* a private copy */
} zs_segment;

static inline uint64_t zs_page(uint64_t nbytes) { return (nbytes + 4095) & ~(uint64_t)4095; }

/* -- memory that can be shared ------------------------------------------------------------------ */

#ifndef _WIN32
#ifdef __linux__
#ifndef MFD_CLOEXEC
#define MFD_CLOEXEC 1U
#endif
#ifndef MFD_ALLOW_SEALING
#define MFD_ALLOW_SEALING 2U
#endif
#ifndef F_ADD_SEALS
#define F_ADD_SEALS 1033
#define F_GET_SEALS 1034
#define F_SEAL_SEAL 1
#define F_SEAL_SHRINK 2
#define F_SEAL_GROW 4
#endif
#endif

/* Make memory of a fixed size, which has no name in any file system. Returns a descriptor, or -1 with errno
 * set. On Linux its size is sealed, so that no access to it can fail. */
static inline int zs_make(uint64_t size)
{
    int saved;
#ifdef __linux__
    int fd = (int)syscall(SYS_memfd_create, "zeno_fast", MFD_CLOEXEC | MFD_ALLOW_SEALING);
#else
    char name[32];
    int fd = -1, attempt;
    for (attempt = 0; fd < 0 && attempt < 16; ++attempt) {
        unsigned long long number;
        arc4random_buf(&number, sizeof number);
        snprintf(name, sizeof name, "/zeno.%llx", number);
        fd = shm_open(name, O_RDWR | O_CREAT | O_EXCL, 0600);
        if (fd < 0 && errno != EEXIST)
            break;
    }
    if (fd >= 0)
        shm_unlink(name);
#endif
    if (fd < 0)
        return -1;
    if (ftruncate(fd, (off_t)size) == 0
#ifdef __linux__
        && fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL) == 0
#endif
    )
        return fd;
    saved = errno;
    close(fd);
    errno = saved;
    return -1;
}

static inline void *zs_map(int fd, uint64_t size)
{
    void *base = mmap(NULL, (size_t)size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    return base == MAP_FAILED ? NULL : base;
}

static inline void zs_unmap(void *base, uint64_t size) { munmap(base, (size_t)size); }

static inline void zs_drop(zs_handle handle) { close(handle); }
#else
/* Make memory of a fixed size without a name; a child process
 * has it by its handle. Returns NULL where that fails. */
static inline HANDLE zs_make(uint64_t size)
{
    SECURITY_ATTRIBUTES inherited = {sizeof inherited, NULL, TRUE};
    return CreateFileMappingW(INVALID_HANDLE_VALUE, &inherited, PAGE_READWRITE, (DWORD)(size >> 32),
                              (DWORD)size, NULL);
}

static inline void *zs_map(HANDLE mapping, uint64_t size)
{
    return MapViewOfFile(mapping, FILE_MAP_ALL_ACCESS, 0, 0, (SIZE_T)size);
}

static inline void zs_unmap(void *base, uint64_t size)
{
    (void)size;
    UnmapViewOfFile(base);
}

static inline void zs_drop(zs_handle handle) { CloseHandle(handle); }
#endif

/* Let go of a segment; of one that is all zeros, or was closed, there is nothing to let go of. */
static inline void zs_close(zs_segment *segment)
{
    if (!segment->base)
        return;
    zs_unmap(segment->base, segment->size);
    if (segment->handle != ZS_NO_HANDLE)
        zs_drop(segment->handle);
    segment->base = NULL;
    segment->handle = ZS_NO_HANDLE;
}

/* -- the segment -------------------------------------------------------------------------------- */

/* Make a segment, for the host. Returns 0, or -1 where the system has none to give. */
static inline int zs_create(zs_segment *segment, uint32_t ring_size, uint64_t arena_size)
{
    zs_header *header = &segment->header;
    memset(segment, 0, sizeof *segment);
    memcpy(header->magic, "ZENOSHM", 8);
    header->version = ZS_VERSION;
    header->ring_size = ring_size;
    header->arena = ZS_RINGS + 2 * (uint64_t)ring_size;
    header->arena_size = zs_page(arena_size);
    segment->size = header->arena + header->arena_size;
    segment->handle = zs_make(segment->size);
    if (segment->handle == ZS_NO_HANDLE)
        return -1;
    segment->base = (uint8_t *)zs_map(segment->handle, segment->size);
    if (!segment->base) {
        zs_drop(segment->handle);
        segment->handle = ZS_NO_HANDLE;
        return -1;
    }
    memcpy(segment->base, header, sizeof *header);
    return 0;
}

/* Map the memory that the host has announced in ZENO_ARENA, for a guest; its header is not filled in.
 * Returns 0, or -1 where there is none. */
static inline int zs_attach_memory(zs_segment *segment, const char *announced)
{
    char *end;
    long long handle;
    memset(segment, 0, sizeof *segment);
    segment->handle = ZS_NO_HANDLE;
    if (!announced)
        return -1;
    handle = strtoll(announced, &end, 10);
    if (*end != ':')
        return -1;
    segment->size = strtoull(end + 1, NULL, 10);
    if (segment->size < ZS_RINGS)
        return -1;
#ifdef _WIN32
    segment->handle = (HANDLE)(intptr_t)handle;
#else
    segment->handle = (int)handle;
#endif
    segment->base = (uint8_t *)zs_map(segment->handle, segment->size);
    if (!segment->base) {
        segment->handle = ZS_NO_HANDLE;
        return -1;
    }
    return 0;
}

/* Take up the segment that the host has announced in ZENO_SHM, for a guest. Returns 0, or -1 where
 * there is none, or none that this source understands: go on without it then. */
static inline int zs_attach(zs_segment *segment, const char *announced)
{
    const zs_header *header = &segment->header;
    if (zs_attach_memory(segment, announced) != 0)
        return -1;
    memcpy(&segment->header, segment->base, sizeof segment->header);
    if (memcmp(header->magic, "ZENOSHM", 8) == 0 && header->version == ZS_VERSION &&
        header->ring_size >= ZR_MIN_SIZE && header->ring_size <= ZR_MAX_SIZE &&
        !(header->ring_size & (header->ring_size - 1)) &&
        header->arena >= ZS_RINGS + 2 * (uint64_t)header->ring_size &&
        header->arena <= segment->size && header->arena_size <= segment->size - header->arena)
        return 0;
    zs_close(segment);
    return -1;
}

/* Open the ends of the rings: those of the host, or those of the guest. Returns ZR_OK or ZR_CORRUPT. */
static inline int zs_open_rings(zs_segment *segment, int is_host, zr_reader *reader, zr_writer *writer)
{
    const uint32_t size = segment->header.ring_size;
    uint8_t *base = segment->base;
    uint8_t *to_guest = base + ZS_RINGS;
    uint8_t *to_host = to_guest + size;
    if (is_host)
        return zr_open_writer(writer, base + ZS_TO_GUEST, to_guest, size) |
               zr_open_reader(reader, base + ZS_TO_HOST, to_host, size);
    return zr_open_writer(writer, base + ZS_TO_HOST, to_host, size) |
           zr_open_reader(reader, base + ZS_TO_GUEST, to_guest, size);
}

#ifdef __cplusplus
}
#endif

#endif

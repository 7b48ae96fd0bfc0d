"""Memory for what is read, which grows for large messages and is given back after them."""

from libc.stdlib cimport realloc

cdef extern from * nogil:
    """
    #include <stdint.h>
    #if defined(__linux__)
    #include <sys/mman.h>
    #endif
    /* Most of the time that a large message takes beside its copying goes into page faults. */
    static void use_huge_pages(char *memory, size_t nbytes)
    {
    #ifdef MADV_HUGEPAGE
        const uintptr_t huge = (uintptr_t)1 << 21;
        const uintptr_t begin = ((uintptr_t)memory + huge - 1) & ~(huge - 1);
        const uintptr_t end = ((uintptr_t)memory + nbytes) & ~(huge - 1);
        if (begin < end)
            madvise((void *)begin, end - begin, MADV_HUGEPAGE);
    #else
        (void)memory;
        (void)nbytes;
    #endif
    }
    """
    void use_huge_pages(char *memory, size_t nbytes)

cdef size_t RELAXED = 1024 * 1024  # what is larger is given back once it is empty


cdef bint grow(char **memory, size_t *capacity, size_t wanted) noexcept nogil:
    """Make memory larger, or the first of it; return whether that could be."""
    cdef char *grown = <char *> realloc(memory[0], wanted)
    if grown is NULL:
        return False
    use_huge_pages(grown, wanted)
    memory[0] = grown
    capacity[0] = wanted
    return True


cdef void give_back(char **memory, size_t *capacity) noexcept nogil:
    """Give memory back that is large and empty, but for a chunk."""
    cdef char *shrunk
    if capacity[0] > RELAXED:
        shrunk = <char *> realloc(memory[0], CHUNK)
        if shrunk is not NULL:
            memory[0] = shrunk
            capacity[0] = CHUNK

# How lines of a pipe, and messages of a ring, are handed over, and what is kept of those too long.
from libc.string cimport memcpy, memmove

cdef enum:
    NO_LINE = 0
    LINE = 1
    LONG_LINE = 2  # above the limit
    CORRUPT = 3  # what is shared makes no sense any more
    HEAD = 512  # bytes that are kept of a long line's begin, and of its end

cdef struct LongLine:
    size_t nbytes  # that have come of it; 0 while none does
    char begin[HEAD]
    char end[HEAD]


cdef inline void keep_part(LongLine *kept, const char *part, size_t nbytes) noexcept nogil:
    """Note a part of a line above the limit; the first one has HEAD bytes at the least."""
    if not kept.nbytes:
        memcpy(kept.begin, part, HEAD)
    if nbytes >= HEAD:
        memcpy(kept.end, part + nbytes - HEAD, HEAD)
    else:
        memmove(kept.end, kept.end + nbytes, HEAD - nbytes)
        memcpy(kept.end + HEAD - nbytes, part, nbytes)
    kept.nbytes += nbytes

cdef enum:
    CHUNK = 65536  # what a Linux pipe holds, so one read empties it

cdef bint grow(char **memory, size_t *capacity, size_t wanted) noexcept nogil
cdef void give_back(char **memory, size_t *capacity) noexcept nogil

# The part of wasmtime's C API that calls need; declared here because the package has no headers.
# zeno_fast/wasm/library.py compares it with the library that is loaded.

from libc.stddef cimport size_t
from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t, uint64_t

cdef struct Func:  # wasmtime_func_t
    uint64_t store_id
    void *private

cdef struct Memory:  # wasmtime_memory_t
    uint64_t store_id
    uint32_t private1
    uint32_t private2
    uint64_t private3

cdef struct GuestInstance:  # wasmtime_instance_t
    uint64_t store_id
    size_t private

cdef union ExternValue:
    Func func
    Memory memory

cdef struct Extern:  # wasmtime_extern_t
    uint8_t kind
    ExternValue of

cdef union Value:  # wasmtime_val_raw_t
    int32_t i32
    int64_t i64
    uint8_t v128[16]

cdef struct Text:  # wasm_byte_vec_t
    size_t size
    char *data

ctypedef void *(*host_function_t)(void *, void *, Value *, size_t) noexcept nogil
ctypedef void *(*epoch_callback_t)(void *, void *, uint64_t *, uint8_t *) noexcept nogil

# In the order of FUNCTIONS in zeno_fast/wasm/library.py. Contexts, stores, traps and errors are
# opaque; an error or a trap that is returned belongs to the caller.
cdef struct Library:
    void *(*func_call_unchecked)(void *, const Func *, Value *, size_t, void **) noexcept nogil
    char *(*memory_data)(void *, const Memory *) noexcept nogil
    size_t (*memory_data_size)(void *, const Memory *) noexcept nogil
    void (*set_epoch_deadline)(void *, uint64_t) noexcept nogil
    void *(*set_fuel)(void *, uint64_t) noexcept nogil
    void (*set_data)(void *, void *) noexcept nogil
    void *(*get_data)(void *) noexcept nogil
    void *(*caller_context)(void *) noexcept nogil
    bint (*caller_export_get)(void *, const char *, size_t, Extern *) noexcept nogil
    void *(*linker_define)(
        void *, const char *, size_t, const char *, size_t, void *, host_function_t, void *,
        void *) noexcept nogil
    void (*trap_message)(void *, Text *) noexcept nogil
    void (*trap_delete)(void *) noexcept nogil
    bint (*trap_code)(void *, uint8_t *) noexcept nogil
    void *(*trap_new)(const char *, size_t) noexcept nogil
    void (*error_message)(void *, Text *) noexcept nogil
    void (*error_delete)(void *) noexcept nogil
    bint (*error_exit_status)(void *, int *) noexcept nogil
    void *(*error_new)(const char *) noexcept nogil
    void (*text_delete)(Text *) noexcept nogil
    void (*increment_epoch)(void *) noexcept nogil
    void *(*engine_clone)(void *) noexcept nogil
    void *(*store_new)(void *, void *, void *) noexcept nogil
    void (*store_delete)(void *) noexcept nogil
    void (*store_limiter)(void *, int64_t, int64_t, int64_t, int64_t, int64_t) noexcept nogil
    void *(*store_context)(void *) noexcept nogil
    void *(*set_wasi)(void *, void *) noexcept nogil
    void *(*wasi_new)() noexcept nogil
    void (*epoch_callback)(void *, epoch_callback_t, void *, void *) noexcept nogil
    void *(*instantiate)(void *, void *, GuestInstance *, void **) noexcept nogil
    bint (*export_get)(void *, const GuestInstance *, const char *, size_t, Extern *) noexcept nogil

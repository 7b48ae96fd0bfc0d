"""What the loaded wasmtime library must look like for it to be called directly."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from importlib.metadata import version
from typing import Any

# In the order of the struct Library in ext/zeno_fast/wasmtime_c.pxd: the function's name, the
# number of its arguments, each as wide as a pointer, and the width of its result.
FUNCTIONS = (
    ("wasmtime_func_call_unchecked", 5, 8),
    ("wasmtime_memory_data", 2, 8),
    ("wasmtime_memory_data_size", 2, 8),
    ("wasmtime_context_set_epoch_deadline", 2, 0),
    ("wasmtime_context_set_fuel", 2, 8),
    ("wasmtime_context_set_data", 2, 0),
    ("wasmtime_context_get_data", 1, 8),
    ("wasmtime_caller_context", 1, 8),
    ("wasmtime_caller_export_get", 4, 1),
    ("wasmtime_linker_define_func_unchecked", 9, 8),
    ("wasm_trap_message", 2, 0),
    ("wasm_trap_delete", 1, 0),
    ("wasmtime_trap_code", 2, 1),
    ("wasmtime_trap_new", 2, 8),
    ("wasmtime_error_message", 2, 0),
    ("wasmtime_error_delete", 1, 0),
    ("wasmtime_error_exit_status", 2, 1),
    ("wasmtime_error_new", 1, 8),
    ("wasm_byte_vec_delete", 1, 0),
    ("wasmtime_engine_increment_epoch", 1, 0),
    ("wasmtime_engine_clone", 1, 8),
    ("wasmtime_store_new", 3, 8),
    ("wasmtime_store_delete", 1, 0),
    ("wasmtime_store_limiter", 6, 0),
    ("wasmtime_store_context", 1, 8),
    ("wasmtime_context_set_wasi", 2, 8),
    ("wasi_config_new", 0, 8),
    ("wasmtime_store_epoch_deadline_callback", 4, 0),
    ("wasmtime_instance_pre_instantiate", 4, 8),
    ("wasmtime_instance_export_get", 5, 1),
)
KINDS = {
    "WASMTIME_EXTERN_FUNC": 0,
    "WASMTIME_EXTERN_MEMORY": 3,
}
POINTER_SIZE = 8
OLDEST = 50  # newer ones are taken at their layout, which is compared below


def find_mismatch(loaded: Any, struct_sizes: Mapping[str, int]) -> str:
    """Say how the loaded library differs from the one the extension was written for, "" if not.

    Args:
        loaded: `wasmtime._ffi`.
        struct_sizes: Bytes of each struct that the extension shares with the library.
    """
    found = _find_difference(loaded, struct_sizes)
    return f"wasmtime {version('wasmtime')} is not as expected: {found}" if found else ""


def _find_difference(loaded: Any, struct_sizes: Mapping[str, int]) -> str:
    major = version("wasmtime").partition(".")[0]
    if not major.isdecimal() or int(major) < OLDEST:
        return f"it is older than {OLDEST}.0, the first that was tried"
    for name, nbytes in struct_sizes.items():
        struct = getattr(loaded, name, None)
        found = 0 if struct is None else ctypes.sizeof(struct)
        if found != nbytes:
            return f"{name} has {found} bytes, not {nbytes}"
    for name, number in KINDS.items():
        kind = getattr(loaded, name, None)
        if kind is None or kind.value != number:
            return f"{name} is not {number}"
    for name, narguments, nbytes in FUNCTIONS:
        function = getattr(loaded.dll, name, None)
        if function is None:
            return f"there is no function {name}"
        arguments = [ctypes.sizeof(kind) for kind in function.argtypes or ()]
        result = 0 if function.restype is None else ctypes.sizeof(function.restype)
        if arguments != [POINTER_SIZE] * narguments or result != nbytes:
            return f"{name} has another signature"
    return ""


def addresses(loaded: Any) -> list[int]:
    """Return where each of FUNCTIONS lies in memory; only where `find_mismatch` found nothing."""
    found = []
    for name, _, _ in FUNCTIONS:
        address = ctypes.cast(getattr(loaded.dll, name), ctypes.c_void_p).value
        assert address is not None
        found.append(address)
    return found

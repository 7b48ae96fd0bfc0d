"""What a guest may import besides the library's WASI: names, types, and who answers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from wasmtime import FuncType, ValType

from zeno_fast.wasm import assemblyscript, wasi

# The protocol's own, from module `env`: number of i32 parameters, whether an i32 is returned. In
# the order of the numbers under which guests call them.
PROTOCOL = {
    "host_log": (4, False),
    "host_db_query": (2, True),
    "host_http_request": (2, True),
    "host_scope_get": (2, True),
    "host_scope_set": (2, True),
    "host_file_read": (2, True),
    "host_file_write": (2, True),
    "host_env_get": (2, True),
}


@dataclass(frozen=True, slots=True)
class SystemCall:
    """What a language's own library imports: four i32 parameters, and the guest that asks."""

    module: str
    name: str
    function: Callable[[wasi.Caller, int, int, int, int], int]
    returns: bool = True


# Their numbers follow those of PROTOCOL.
SYSTEM = (
    SystemCall(wasi.MODULE, "poll_oneoff", wasi.poll_oneoff),
    SystemCall("env", "abort", assemblyscript.abort, returns=False),
    SystemCall(wasi.MODULE, "fd_write", wasi.fd_write),
)


@dataclass(frozen=True, slots=True)
class HostFunction:
    """One that is defined in a linker."""

    number: int
    module: str
    name: str
    nparameters: int
    returns: bool

    def type(self) -> FuncType:
        """Return its type as the package has it."""
        i32 = ValType.i32()
        return FuncType([i32] * self.nparameters, [i32] if self.returns else [])


def host_functions(files: bool) -> list[HostFunction]:
    """Return the functions that the host defines.

    Args:
        files: Whether the guest may use files, so that writing is left to the library.
    """
    functions = [
        HostFunction(number, "env", name, nparameters, returns)
        for number, (name, (nparameters, returns)) in enumerate(PROTOCOL.items())
    ]
    functions += [
        HostFunction(number, call.module, call.name, 4, call.returns)
        for number, call in enumerate(SYSTEM, len(functions))
        if not (files and call.name == "fd_write")
    ]
    return functions

"""A plugin's module: checked, compiled once, linked once."""

from __future__ import annotations

import functools
import logging
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

import wasmtime
from wasmtime import ExportType, FuncType, MemoryType, ValType, WasmtimeError

from zeno_fast.errors import PluginLoadError
from zeno_fast.wasm import wasi
from zeno_fast.wasm.failures import Failures
from zeno_fast.wasm.hostcalls import IMPORTS

if TYPE_CHECKING:
    from zeno_fast.manifest import Manifest

log = logging.getLogger("zeno_fast")

MAGIC = b"\0asm"
MODULE = MAGIC + b"\1\0\0\0"
COMPONENT = MAGIC + b"\x0d\0\1\0"
TABLE_ELEMENTS = 1_000_000
FIRST_PROCESS = os.getpid()
I32 = "i32"

# Export -> parameters and results; what is not required may be absent.
REQUIRED = {"alloc": ([I32], [I32]), "plugin_execute": ([I32] * 4, [I32])}
OPTIONAL: dict[str, tuple[list[str], list[str]]] = {
    "plugin_init": ([], [I32]),
    "plugin_register_slots": ([], [I32]),
    "_initialize": ([], []),
    "_start": ([], []),
}
FREE: tuple[list[str], list[str]] = ([I32], [])


@dataclass(frozen=True, slots=True)
class Program:
    """A compiled module and the limits that its instances run under.

    Attributes:
        exports: Names of the functions that the module exports, of those that the protocol names.
        memory: Bound of an instance's linear memory, in bytes.
        fuel: Bound of the instructions of one call, or None.
        frees: Whether the guest takes back what it gave by `alloc`.
    """

    plugin: str
    engine: wasmtime.Engine
    module: wasmtime.Module
    exports: frozenset[str]
    memory: int
    fuel: int | None
    failures: Failures

    @property
    def frees(self) -> bool:
        """Whether `free` is exported, with the usual signature."""
        return "free" in self.exports

    def new_store(self) -> wasmtime.Store:
        """Make a store with the plugin's limits."""
        store = wasmtime.Store(self.engine)
        store.set_limits(
            memory_size=self.memory, table_elements=TABLE_ELEMENTS, instances=1, memories=1
        )
        store.set_wasi(wasmtime.WasiConfig())  # no files, no environment, no arguments
        if self.fuel:
            store.set_fuel(self.fuel)
        return store


def shared_engine(fuel: bool) -> wasmtime.Engine:
    """Return the process's engine, one for guests with a bound of instructions, one for others."""
    return _engine(fuel, os.getpid())


@functools.cache
def _engine(fuel: bool, process: int) -> wasmtime.Engine:
    config = wasmtime.Config()
    config.epoch_interruption = True
    if fuel:
        config.consume_fuel = True
    if process != FIRST_PROCESS:
        # The compiler's threads, if the parent had any, were not inherited by the fork.
        config.parallel_compilation = False
    try:
        config.cache = True
    except WasmtimeError as error:
        log.info("WASM modules are compiled anew each time: %s", error)
    return wasmtime.Engine(config)


def host_functions() -> list[tuple[bytes, bytes, FuncType]]:
    """Return module, name and type of the functions that the host defines, in order."""
    i32 = ValType.i32()
    functions = []
    for name, (nparameters, returns) in IMPORTS.items():
        kind = FuncType([i32] * nparameters, [i32] if returns else [])
        functions.append((b"env", name.encode(), kind))
    for name in wasi.FUNCTIONS:
        functions.append((wasi.MODULE.encode(), name.encode(), FuncType([i32] * 4, [i32])))
    return functions


def new_linker(engine: wasmtime.Engine) -> wasmtime.Linker:
    """Return a linker with the library's WASI, of which the host replaces a part."""
    linker = wasmtime.Linker(engine)
    linker.allow_shadowing = True
    linker.define_wasi()
    return linker


def compile_program(manifest: Manifest, code: bytes) -> Program:
    """Check and compile a module. Raises PluginLoadError."""
    name = manifest.name
    engine = shared_engine(manifest.wasm.fuel is not None)
    path = manifest.binary_path
    if path is not None and path.suffix.lower() == ".wat" and not code.startswith(MAGIC):
        code = _assemble(manifest, code)
    problem = find_problem(code)
    if problem:
        raise _refusal(manifest, problem)
    try:
        module = wasmtime.Module(engine, code)
    except WasmtimeError as error:
        raise _refusal(manifest, f"cannot be compiled: {error}") from error
    exports = {export.name: export for export in module.exports}
    problems = [*_check_imports(module), *_check_exports(exports)]
    if problems:
        raise _refusal(manifest, "is no plugin: " + "; ".join(problems))
    known = {*REQUIRED, *OPTIONAL, "plugin_cleanup", "free"} & set(exports)
    if "free" in known and not _has_type(exports["free"], *FREE):
        known.remove("free")
    if "plugin_cleanup" in known and not _has_type(exports["plugin_cleanup"], []):
        known.remove("plugin_cleanup")
    options = manifest.wasm
    return Program(
        plugin=name,
        engine=engine,
        module=module,
        exports=frozenset(known),
        memory=options.memory,
        fuel=options.fuel,
        failures=Failures(name, options.memory, options.fuel),
    )


def find_problem(code: bytes) -> str:
    """Say why bytes cannot be a WASM module, "" where they may be one."""
    if not code:
        return "is empty"
    if code.startswith(COMPONENT):
        return (
            "is a WASM component, and plugins are modules: build it for wasm32-wasip1, without "
            "`wasm-tools component new`"
        )
    if code.startswith(MODULE):
        return ""
    if code.startswith(MAGIC):
        return f"is WASM of version {int.from_bytes(code[4:8], 'little')}, and only 1 is known"
    hint = ""
    if code.startswith(b"\x7fELF") or code.startswith(b"MZ"):
        hint = "; it is a native program: should the manifest say `type: sidecar`?"
    elif code.lstrip()[:1] in (b"(", b";"):
        hint = "; it looks like WASM's text format: call it .wat, or compile it by wat2wasm"
    return f"is not WASM: it begins with {code[:8]!r}, not with {MAGIC!r}{hint}"


def _refusal(manifest: Manifest, problem: str) -> PluginLoadError:
    file = manifest.binary_path or manifest.binary or "its binary"
    return PluginLoadError(
        f"plugin {manifest.name!r}: {file} {problem}", plugin=manifest.name, folder=manifest.folder
    )


def _assemble(manifest: Manifest, text: bytes) -> bytes:
    try:
        return bytes(wasmtime.wat2wasm(text))
    except WasmtimeError as error:
        raise _refusal(manifest, f"is not WASM's text format: {error}") from error


def _check_imports(module: wasmtime.Module) -> list[str]:
    """List the imports that the host does not have, or has with other parameters."""
    engine = shared_engine(False)
    linker = new_linker(engine)
    store = wasmtime.Store(engine)
    unknown, wrong = [], []
    for item in module.imports:
        name = f"{item.module}.{item.name}"
        if item.module == "env" and item.name in IMPORTS:
            nparameters, returns = IMPORTS[item.name]
            if not _has_type(item, [I32] * nparameters, [I32] if returns else []):
                wrong.append(name)
            continue
        try:
            linker.get(store, item.module, item.name or "")
        except WasmtimeError:
            unknown.append(name)
    problems = []
    if unknown:
        problems.append(f"it imports what the host does not have: {', '.join(unknown)}")
    if wrong:
        problems.append(f"it imports with a wrong signature: {', '.join(wrong)}")
    return problems


def _check_exports(exports: dict[str, ExportType]) -> list[str]:
    """List the exports that are missing, or are not what the protocol says."""
    missing = [name for name in ("memory", *REQUIRED) if name not in exports]
    wrong = []
    memory = exports.get("memory")
    if memory is not None:
        kind = memory.type
        if not isinstance(kind, MemoryType) or kind.is_64 or kind.is_shared:
            wrong.append("memory (must be a 32-bit memory of its own)")
    for name, (parameters, results) in {**REQUIRED, **OPTIONAL}.items():
        if name in exports and not _has_type(exports[name], parameters, results):
            wrong.append(f"{name} (must be {_signature(parameters, results)})")
    problems = []
    if missing:
        problems.append(f"it does not export {', '.join(missing)}")
    if wrong:
        problems.append(f"it exports with a wrong type: {', '.join(wrong)}")
    return problems


def _has_type(
    item: ExportType | wasmtime.ImportType, parameters: list[str], results: list[str] | None = None
) -> bool:
    """Tell whether an import or export is such a function; `results` None allows one or none."""
    kind = item.type
    if not isinstance(kind, FuncType):
        return False
    found = [str(value) for value in kind.results]
    fits = len(found) <= 1 if results is None else found == results
    return fits and [str(value) for value in kind.params] == parameters


def _signature(parameters: list[str], results: list[str]) -> str:
    return f"({', '.join(parameters)}) -> {results[0] if results else 'nothing'}"

"""A plugin's module: checked, compiled once, linked once."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import wasmtime
from wasmtime import WasmtimeError

from zeno_fast.errors import PluginLoadError
from zeno_fast.formats import COMPONENT_ADVICE
from zeno_fast.limits import STACK_MARGIN
from zeno_fast.wasm.engine import (
    MOST_TABLES,
    POOLED_TABLE_ELEMENTS,
    Engine,
    EngineOptions,
    shared_engine,
)
from zeno_fast.wasm.failures import Failures
from zeno_fast.wasm.imports import HostFunction, host_functions
from zeno_fast.wasm.signatures import (
    IS_64,
    PAGE,
    SHARED,
    Bounds,
    Interface,
    Item,
    Signature,
    read_interface,
)
from zeno_fast.wasm.world import World

if TYPE_CHECKING:
    from zeno_fast.manifest import Manifest, WasmOptions

log = logging.getLogger("zeno_fast.wasm.compile")

MAGIC = b"\0asm"
MODULE = MAGIC + b"\1\0\0\0"
COMPONENT = MAGIC + b"\x0d\0\1\0"
NOTICED = 0.5  # seconds of compiling that are not worth a word
I32, I64 = "i32", "i64"

# Export -> parameters and possible results; what is not required may be absent.
REQUIRED = {"alloc": ([I32], [I32]), "plugin_execute": ([I32] * 4, [I32, I64])}
OPTIONAL: dict[str, tuple[list[str], list[str]]] = {
    "plugin_init": ([], [I32, I64]),
    "plugin_register_slots": ([], [I32, I64]),
    "_initialize": ([], []),
    "_start": ([], []),
}
FREE: tuple[list[str], list[str]] = ([I32], [])


@dataclass(frozen=True, slots=True)
class Program:
    """A compiled module and the limits that its instances run under.

    Attributes:
        exports: Names of the functions that the module exports, of those that the protocol names.
        packed: Names of those that return where and how long their answer is, as one i64.
        memory: Bound of an instance's linear memory, in bytes.
        table: Bound of the elements of each of its tables.
        stack: Bytes that the calling thread's stack must have left.
        fuel: Bound of the instructions of one call, or None.
        world: What it sees of the machine.
    """

    plugin: str
    engine: Engine
    module: wasmtime.Module
    exports: frozenset[str]
    packed: frozenset[str]
    memory: int
    table: int
    stack: int
    fuel: int | None
    world: World
    failures: Failures

    @property
    def frees(self) -> bool:
        """Whether `free` is exported, with the usual signature."""
        return "free" in self.exports

    @property
    def host_functions(self) -> list[HostFunction]:
        """What the host defines for it."""
        return host_functions(bool(self.world.folders))


def new_linker(engine: wasmtime.Engine) -> wasmtime.Linker:
    """Return a linker with the library's WASI, of which the host replaces a part."""
    linker = wasmtime.Linker(engine)
    linker.allow_shadowing = True
    linker.define_wasi()
    return linker


def compile_program(manifest: Manifest, options: WasmOptions, code: bytes) -> Program:
    """Check and compile a module.

    Args:
        options: The manifest's, with every limit filled in.

    Raises PluginLoadError.
    """
    name = manifest.name
    assert options.memory and options.table and options.stack
    # A pool keeps room for tables of one size: where the manifest asks for more there is none.
    pooled = options.fresh and options.table <= POOLED_TABLE_ELEMENTS
    engine = shared_engine(EngineOptions(options.fuel is not None, options.stack, pooled))
    path = manifest.binary_path
    if path is not None and path.suffix.lower() == ".wat" and not code.startswith(MAGIC):
        code = _assemble(manifest, code)
    problem = find_problem(code)
    if problem:
        raise _refusal(manifest, problem)
    try:
        with _announced(name, len(code)):
            module = engine.compile(code)
    except WasmtimeError as error:
        raise _refusal(manifest, f"cannot be compiled: {error}") from error
    try:
        interface = read_interface(code)
    except (ValueError, IndexError) as error:
        raise _refusal(manifest, f"has what this version does not know: {error}") from error
    exports = interface.exports
    problems = [
        *_check_exports(exports),
        *_check_limits(interface, options),
        *_check_imports(engine.engine, module, interface),
    ]
    if problems:
        raise _refusal(manifest, "is no plugin: " + "; ".join(problems))
    known = {*REQUIRED, *OPTIONAL, "plugin_cleanup", "free"} & set(exports)
    if "free" in known and not _has_type(exports["free"], *FREE):
        known.remove("free")
    if "plugin_cleanup" in known and not _has_type(exports["plugin_cleanup"], []):
        known.remove("plugin_cleanup")
    return Program(
        plugin=name,
        engine=engine,
        module=module,
        exports=frozenset(known),
        packed=frozenset(name for name in known if _has_results(exports[name], I64)),
        memory=options.memory,
        table=options.table,
        stack=options.stack + STACK_MARGIN,
        fuel=options.fuel,
        world=World.of(manifest),
        failures=Failures(name, options),
    )


@contextmanager
def _announced(plugin: str, nbytes: int) -> Iterator[None]:
    """Log that a module is being compiled, where that takes so long that somebody may wonder.

    Each record says by its attribute `compiling` whether that begins or has ended.
    """
    begun = time.monotonic()
    said = threading.Event()

    def say() -> None:
        said.set()
        log.info(
            "plugin %r: compiling %.1f MB of WASM, for the first time", plugin, nbytes / 1e6,
            extra={"compiling": True},
        )  # fmt: skip

    timer = threading.Timer(NOTICED, say)
    timer.daemon = True
    timer.start()
    ended = "could not be compiled, after"
    try:
        yield
        ended = "compiled in"
    finally:
        timer.cancel()
        timer.join()
        if said.is_set():
            log.info(
                "plugin %r: %s %.1f s", plugin, ended, time.monotonic() - begun,
                extra={"compiling": False},
            )  # fmt: skip


def find_problem(code: bytes) -> str:
    """Say why bytes cannot be a WASM module, "" where they may be one."""
    if not code:
        return "is empty"
    if code.startswith(COMPONENT):
        return f"is a WASM component{COMPONENT_ADVICE}"
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


def _check_imports(
    engine: wasmtime.Engine, module: wasmtime.Module, interface: Interface
) -> list[str]:
    """List the imports that the host does not have, or has with another type."""
    ours = {(own.module, own.name): own for own in host_functions(False)}
    linker = new_linker(engine)
    store = wasmtime.Store(engine)
    unknown, wrong = [], []
    for where, name, item in interface.imports:
        own = ours.get((where, name))
        if own is not None:
            if not _has_type(item, [I32] * own.nparameters, [I32] if own.returns else []):
                wrong.append(f"{where}.{name}")
            continue
        try:
            linker.get(store, where, name)
        except WasmtimeError:
            unknown.append(f"{where}.{name}")
    problems = []
    if unknown:
        problems.append(f"it imports what the host does not have: {', '.join(unknown)}")
    if wrong:
        problems.append(f"it imports with a wrong signature: {', '.join(wrong)}")
    if not problems:
        try:
            for own in ours.values():
                linker.define_func(own.module, own.name, own.type(), _never_called)
            linker.instantiate_pre(module).close()
        except WasmtimeError as error:  # a part of the library's WASI, wanted as something else
            problems.append(f"it imports with a wrong signature: {error}")
    linker.close()
    return problems


def _never_called(*_: int) -> int:
    raise AssertionError


def _check_limits(interface: Interface, options: WasmOptions) -> list[str]:
    """List what the module wants at its start, and may not have."""
    problems = []
    for memory in interface.memories:
        nbytes = memory.least * PAGE
        if options.memory is not None and nbytes > options.memory:
            problems.append(
                f"it needs {nbytes} bytes of memory from the start, and may have {options.memory} "
                "(see `wasm.memory` in the manifest)"
            )
    for table in interface.tables:
        if options.table is not None and table.least > options.table:
            problems.append(
                f"it needs a table of {table.least} elements from the start, and may have "
                f"{options.table} (see `wasm.table` in the manifest)"
            )
    if len(interface.tables) > MOST_TABLES:
        problems.append(f"it has {len(interface.tables)} tables, and may have {MOST_TABLES}")
    return problems


def _check_exports(exports: dict[str, Item]) -> list[str]:
    """List the exports that are missing, or are not what the protocol says."""
    missing = [name for name in ("memory", *REQUIRED) if name not in exports]
    wrong = []
    memory = exports.get("memory")
    if memory is not None and (
        not isinstance(memory.type, Bounds) or memory.type.flags & (IS_64 | SHARED)
    ):
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


def _has_type(item: Item, parameters: list[str], results: list[str] | None = None) -> bool:
    """Tell whether an import or export is such a function.

    Args:
        results: What it may return, each for itself; empty for nothing, None for any or nothing.
    """
    if not isinstance(item.type, Signature):
        return False
    found = item.type.results
    fits = len(found) <= 1 if results is None else "".join(found) in (results or [""])
    return fits and list(item.type.parameters) == parameters


def _has_results(item: Item, *results: str) -> bool:
    return isinstance(item.type, Signature) and item.type.results == results


def _signature(parameters: list[str], results: list[str]) -> str:
    return f"({', '.join(parameters)}) -> {' or '.join(results) or 'nothing'}"

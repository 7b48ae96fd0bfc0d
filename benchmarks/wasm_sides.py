"""The ways of calling a WASM guest that the benchmarks compare."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson
import wasm_guests
import wasmtime

from zeno_fast.host.functions import HostFunctions
from zeno_fast.manifest import Manifest, Permissions, WasmOptions
from zeno_fast.plugin import SlotDefinition
from zeno_fast.wasm.driver import WasmDriver
from zeno_fast.wasm.slot import WasmSlot

SLOT = "bench.echo"
PACKAGES = ("extism", "extism-sys", "pywasm3")

Call = Callable[[dict[str, Any]], Any]


def open_driver(binary: bytes, options: WasmOptions, *, read_scope: bool = False) -> WasmDriver:
    """Load a guest as the manager does."""
    folder = Path(__file__).parent
    manifest = Manifest(
        name="bench", folder=folder, file=folder / "manifest.yaml", type="wasm", wasm=options,
        permissions=Permissions(scope=("read",) if read_scope else ()),
    )  # fmt: skip
    driver = WasmDriver(manifest, binary, HostFunctions(), 30.0)
    driver.load()
    return driver


def bind(driver: WasmDriver, slot: str = SLOT) -> WasmSlot:
    """Return a slot as the manager gets it."""
    return driver.bind(SlotDefinition(slot, plugin="bench"))


def caller(slot: WasmSlot, scope: dict[str, Any] | None = None) -> Call:
    """Return what callers of the library get."""
    bound = slot.call
    return lambda parameters: bound(parameters, None, scope)


def public_api(binary: bytes, *, fresh: bool = False) -> Call:
    """Call the guest as the wasmtime package's documentation shows it, with orjson.

    Args:
        fresh: Whether each call makes an instance of its own.
    """
    config = wasmtime.Config()
    config.epoch_interruption = True  # a host that cannot stop a guest would be no comparison
    engine = wasmtime.Engine(config)
    linker = wasmtime.Linker(engine)
    module = wasmtime.Module(engine, binary)
    name = SLOT.encode()

    def instantiate() -> tuple[Any, ...]:
        store = wasmtime.Store(engine)
        store.set_epoch_deadline(1)
        exports = linker.instantiate(store, module).exports(store)
        return store, *(exports[key] for key in ("memory", "alloc", "free", "plugin_execute"))

    kept = instantiate()

    def call(parameters: dict[str, Any]) -> Any:
        store, memory, alloc, free, execute = instantiate() if fresh else kept
        request = orjson.dumps({"slot_name": SLOT, "parameters": parameters})
        at = alloc(store, len(request) + len(name))
        memory.write(store, request + name, at)
        answer = execute(store, at + len(request), len(name), at, len(request))
        # A generous guess at the size, so that the end is not looked for byte by byte.
        found = memory.read(store, answer, answer + len(request) + 256)
        message = orjson.loads(found[: found.index(0)])
        free(store, at)
        return message["data"] if message["success"] else None

    return call


def pywasm3(binary: bytes) -> Call:
    """Call the guest through wasm3, an interpreter; nothing could stop a guest that hangs.

    Raises ImportError where it is not installed.
    """
    import wasm3

    environment = wasm3.Environment()
    runtime = environment.new_runtime(65536)
    module = environment.parse_module(binary)
    runtime.load(module)
    alloc, free, execute = map(runtime.find_function, ("alloc", "free", "plugin_execute"))
    memory = runtime.get_memory(0)  # once: the guest never grows it, and each is leaked
    name = SLOT.encode()

    def call(parameters: dict[str, Any], _kept: object = (environment, module)) -> Any:
        request = orjson.dumps({"slot_name": SLOT, "parameters": parameters})
        nrequest, nname = len(request), len(name)
        at = alloc(nrequest + nname)
        memory[at : at + nrequest + nname] = request + name
        answer = execute(at + nrequest, nname, at, nrequest)
        found = bytes(memory[answer : answer + nrequest + 256])
        message = orjson.loads(found[: found.index(0)])
        free(at)
        return message["data"] if message["success"] else None

    return call


def extism(*, fresh: bool = False) -> Call:
    """Call a guest that does the same through the Extism SDK, with orjson.

    Args:
        fresh: Whether each call makes an instance of its own, of a module that is compiled.

    Raises ImportError where it is not installed.
    """
    import extism.extism as sdk  # CompiledPlugin is not exported from the package

    compiled = sdk.CompiledPlugin(wasm_guests.extism_echo(SLOT), functions=[])
    kept = sdk.Plugin(compiled)

    def call(parameters: dict[str, Any]) -> Any:
        plugin = sdk.Plugin(compiled) if fresh else kept
        request = orjson.dumps({"slot_name": SLOT, "parameters": parameters})
        message = orjson.loads(plugin.call("echo", request))
        return message["data"] if message["success"] else None

    return call


def only_json(payload: dict[str, Any]) -> Call:
    """Do what any way of calling has to: encode the request, decode the answer."""
    answer = orjson.dumps({"success": True, "data": payload, "error": None})

    def call(parameters: dict[str, Any]) -> Any:
        orjson.dumps({"slot_name": SLOT, "parameters": parameters})
        return orjson.loads(answer)["data"]

    return call


def json_and_copies(payload: dict[str, Any]) -> Call:
    """Encode the request, copy it to where a guest would be, copy the answer back, decode it."""
    request = orjson.dumps({"slot_name": SLOT, "parameters": payload})
    answer = orjson.dumps({"success": True, "data": payload, "error": None})
    guest, host = memoryview(bytearray(len(request))), memoryview(bytearray(len(answer)))
    there = memoryview(answer)

    def call(parameters: dict[str, Any]) -> Any:
        guest[:] = orjson.dumps({"slot_name": SLOT, "parameters": parameters})
        host[:] = there
        return orjson.loads(host)["data"]

    return call


def optional(sides: dict[str, Callable[[], Call]]) -> tuple[dict[str, Call], list[str]]:
    """Open those sides whose package is installed; also name the others."""
    opened, missing = {}, []
    for name, opener in sides.items():
        try:
            opened[name] = opener()
        except ImportError:
            missing.append(name)
    return opened, missing

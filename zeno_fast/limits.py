"""The bounds that WASM guests run under: what a manifest asks for, and what its host allows."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any

from zeno_fast.errors import PluginLoadError

if TYPE_CHECKING:
    from zeno_fast.manifest import Manifest, WasmOptions

MEMORY = 256 << 20  # bytes
TABLE = 100_000  # elements
STACK = 512 << 10  # bytes
STACK_MARGIN = 128 << 10  # bytes that the library, and host functions in Python, take beside it


@dataclass(frozen=True, slots=True)
class WasmLimits:
    """What no WASM plugin of a manager gets beyond; None where anything may be asked for.

    A manifest that says nothing of a bound gets the usual one, or this one where it is lower. A
    manifest that asks for more than this does not load.

    Attributes:
        memory: Bytes of an instance's linear memory; usually 256 MiB.
        table: Elements of each of an instance's tables; usually 100,000.
        stack: Bytes of machine stack that a guest's calls may nest; usually 512 KiB.
        fuel: Instructions of one call, as wasmtime counts them; usually without a bound.
        timeout: Seconds of one call, where its caller does not say; usually the manager's.
    """

    memory: int | None = None
    table: int | None = None
    stack: int | None = None
    fuel: int | None = None
    timeout: float | None = None

    def __post_init__(self) -> None:
        for item in fields(self):
            value = getattr(self, item.name)
            if value is not None and not value > 0:
                raise ValueError(f"{item.name} must be more than 0, not {value!r}")

    def agree(self, manifest: Manifest, timeout: float) -> WasmOptions:
        """Return a manifest's options with every bound filled in.

        Args:
            timeout: Seconds of a call where neither the manifest nor these limits say.

        Raises PluginLoadError where the manifest asks for more than is allowed.
        """
        usual = {"memory": MEMORY, "table": TABLE, "stack": STACK, "timeout": timeout}
        agreed: dict[str, Any] = {}
        for item in fields(self):
            key = item.name
            asked, most = getattr(manifest.wasm, key), getattr(self, key)
            if asked is not None and most is not None and asked > most:
                raise PluginLoadError(
                    f"{manifest.file} asks for `wasm.{key}` of {asked}, and this host allows "
                    f"{most} at most; lower it, or raise {key} in the manager's wasm_limits",
                    plugin=manifest.name,
                    folder=manifest.folder,
                )
            value = usual.get(key) if asked is None else asked
            agreed[key] = value if most is None else most if value is None else min(value, most)
        return replace(manifest.wasm, **agreed)


NO_LIMITS = WasmLimits()

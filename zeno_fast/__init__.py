"""A fast plugin host: sandboxed WASM and native sidecar plugins behind one API."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from zeno_fast.errors import (
        InvalidParameters,
        ManifestError,
        MessageTooLarge,
        PermissionDenied,
        PluginCrashed,
        PluginLoadError,
        PluginUnavailable,
        ProtocolError,
        SlotError,
        SlotNotFound,
        SlotTimeout,
        UsageError,
        ZenoError,
    )
    from zeno_fast.events import Event
    from zeno_fast.host.context import HostCall, current_host_call
    from zeno_fast.limits import WasmLimits
    from zeno_fast.manager import LoadReport, PluginManager
    from zeno_fast.manifest import Manifest
    from zeno_fast.plugin import InputDefinition, LoadedPlugin, Response, SlotDefinition
    from zeno_fast.sdk import get_include
    from zeno_fast.stream import Stream
    from zeno_fast.watching import Watch

    __version__: str

__all__ = [
    "Event",
    "HostCall",
    "InputDefinition",
    "InvalidParameters",
    "LoadReport",
    "LoadedPlugin",
    "Manifest",
    "ManifestError",
    "MessageTooLarge",
    "PermissionDenied",
    "PluginCrashed",
    "PluginLoadError",
    "PluginManager",
    "PluginUnavailable",
    "ProtocolError",
    "Response",
    "SlotDefinition",
    "SlotError",
    "SlotNotFound",
    "SlotTimeout",
    "Stream",
    "UsageError",
    "WasmLimits",
    "Watch",
    "ZenoError",
    "__version__",
    "current_host_call",
    "get_include",
]


# Nothing is imported before it is asked for: a plugin in Python, which imports `zeno_fast.guest`,
# would load the whole host, and starts three times as fast without it.
_HOMES = {
    "zeno_fast.events": ("Event",),
    "zeno_fast.host.context": ("HostCall", "current_host_call"),
    "zeno_fast.limits": ("WasmLimits",),
    "zeno_fast.manager": ("LoadReport", "PluginManager"),
    "zeno_fast.manifest": ("Manifest",),
    "zeno_fast.plugin": ("InputDefinition", "LoadedPlugin", "Response", "SlotDefinition"),
    "zeno_fast.sdk": ("get_include",),
    "zeno_fast.stream": ("Stream",),
    "zeno_fast.watching": ("Watch",),
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'zeno_fast' has no attribute {name!r}")
    if name == "__version__":
        from importlib.metadata import version  # noqa: PLC0415

        value: Any = version("zeno_fast")
    else:
        from importlib import import_module  # noqa: PLC0415

        homes = (home for home, names in _HOMES.items() if name in names)
        value = getattr(import_module(next(homes, "zeno_fast.errors")), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

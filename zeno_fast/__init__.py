"""A fast plugin host: sandboxed WASM and native sidecar plugins behind one API."""

from typing import TYPE_CHECKING

from zeno_fast.errors import (
    InvalidParameters,
    ManifestError,
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
from zeno_fast.manager import LoadReport, PluginManager
from zeno_fast.manifest import Manifest
from zeno_fast.plugin import InputDefinition, LoadedPlugin, Response, SlotDefinition

if TYPE_CHECKING:
    __version__: str

__all__ = [
    "InputDefinition",
    "InvalidParameters",
    "LoadReport",
    "LoadedPlugin",
    "Manifest",
    "ManifestError",
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
    "UsageError",
    "ZenoError",
    "__version__",
]


def __getattr__(name: str) -> str:
    # importlib.metadata alone takes longer to import than all of the above.
    if name == "__version__":
        from importlib.metadata import version  # noqa: PLC0415

        return version("zeno_fast")
    raise AttributeError(f"module 'zeno_fast' has no attribute {name!r}")

"""What the host knows of a loaded plugin: its slots, its manifest, its state."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from zeno_fast.errors import PluginLoadError

if TYPE_CHECKING:
    from zeno_fast.driver import Driver
    from zeno_fast.manifest import Manifest

PROTOCOL = 1  # the major version that this host speaks
EMPTY: Mapping[str, Any] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class InputDefinition:
    """One declared parameter of a slot.

    Attributes:
        type: As the guest spelt it, in lower case: `string`, `int`, `object`; "" or `any` for any.
        required: Whether a call without it is refused.
        has_default: Whether `default` stands in for it where it is absent.
    """

    name: str
    type: str = ""
    required: bool = False
    has_default: bool = False
    default: Any = None
    description: str = ""


@dataclass(frozen=True, slots=True)
class SlotDefinition:
    """A named function that a plugin offers.

    Attributes:
        name: What callers call, such as `php.run`.
        plugin: Name of the plugin that owns it.
        inputs: Declared parameters by name; empty where the guest declares none.
        outputs: As the guest declared them.
        idempotent: Whether a call may be repeated after a crash.
        blocking: Whether a call of a WASM plugin is too long for an event loop's own thread; None
            where that is to be found out.
    """

    name: str
    plugin: str = ""
    description: str = ""
    example: str = ""
    inputs: Mapping[str, InputDefinition] = field(default_factory=lambda: EMPTY)
    outputs: Mapping[str, Any] = field(default_factory=lambda: EMPTY)
    idempotent: bool = False
    blocking: bool | None = None


@dataclass(slots=True)
class Response:
    """A guest's answer: `data` where `success`, else `error` and sometimes `data` too."""

    success: bool
    data: Any = None
    error: str | None = None


@dataclass(frozen=True, slots=True)
class GuestDescription:
    """What a guest said of itself in `plugin_init` and `plugin_register_slots`.

    Attributes:
        info: The members of the `plugin_init` answer; empty for guests that know no such slot.
        slots: Raw slot definitions; None where the guest lists none.
    """

    info: Mapping[str, Any] = field(default_factory=lambda: EMPTY)
    slots: tuple[SlotDefinition, ...] | None = None

    @property
    def features(self) -> list[Any]:
        """What it has said that it understands, beside what every guest does."""
        features = self.info.get("features")
        return features if isinstance(features, list) else []


def check_protocol(info: Mapping[str, Any], manifest: Manifest) -> None:
    """Raise PluginLoadError where a guest says that it speaks another protocol than this host.

    A guest may say so in `plugin_init`: `"protocol": 1`, or `"1.2"`. A higher minor version only
    adds to it. What is no version is not looked at.
    """
    said = info.get("protocol")
    if isinstance(said, bool) or not isinstance(said, (int, float, str)):
        return
    major = str(said).strip().partition(".")[0]
    if major.isdecimal() and int(major) != PROTOCOL:
        raise PluginLoadError(
            f"plugin {manifest.name!r} speaks version {said} of the plugin protocol, and this "
            f"zeno_fast version {PROTOCOL}; take a version of the plugin, or of zeno_fast, that "
            "fits the other",
            plugin=manifest.name,
            folder=manifest.folder,
        )


@dataclass(slots=True, repr=False)
class LoadedPlugin:
    """A plugin that is loaded: what it is, what it offers, how it does.

    Attributes:
        manifest: As read from its folder.
        slots: Slot definitions by name; empty while a plugin has listed none.
        driver: What makes the slots callable.
        name: The manifest's name.
        version: The manifest's version, or the guest's own where the manifest has none.
    """

    manifest: Manifest
    driver: Driver
    slots: Mapping[str, SlotDefinition]
    version: str = ""

    def __repr__(self) -> str:
        about = f"{self.name} {self.version}".rstrip()
        slots = "1 slot" if len(self.slots) == 1 else f"{len(self.slots)} slots"
        return f"<LoadedPlugin {about}, {self.kind}, {slots}>"

    @property
    def name(self) -> str:
        """The manifest's name."""
        return self.manifest.name

    @property
    def kind(self) -> str:
        """`wasm` or `sidecar`: how it runs; no caller need know."""
        return self.manifest.type

    @property
    def folder(self) -> Path:
        """The plugin's folder."""
        return self.manifest.folder

    def status(self) -> dict[str, Any]:
        """Say how the plugin does: its kind, version, slots and what its driver reports."""
        return {
            "name": self.name,
            "version": self.version,
            "type": self.kind,
            "folder": str(self.folder),
            "slots": sorted(self.slots),
            **self.driver.status(),
        }

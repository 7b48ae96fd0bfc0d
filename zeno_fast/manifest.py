"""The manifest of a plugin: every key read and checked before anything starts."""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

from zeno_fast.binaries import BinaryKeys
from zeno_fast.errors import ManifestError, PluginLoadError
from zeno_fast.permissions import Permissions, understands_url_pattern
from zeno_fast.platforms import WASM, Machine, this_machine
from zeno_fast.plugin import EMPTY, SlotDefinition
from zeno_fast.schema import Document, Fields, did_you_mean, nearest
from zeno_fast.slots import MalformedSlots, check_declared, read_slots
from zeno_fast.yaml_source import (
    ListNode,
    MappingNode,
    Node,
    ScalarNode,
    plain,
    read_file,
    read_yaml,
)

__all__ = ["ConfigParameter", "Manifest", "Permissions", "SidecarOptions", "WasmOptions"]

FILE_NAME = "manifest.yaml"
MOST_INSTANCES = 4096
MOST_WORKERS = 1024
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}")
_RANGE = re.compile(r"(\d{1,6}) *\.\. *(\d{1,6})")
_CONFIG_TYPES = (
    "string", "str", "text", "secret", "password", "url", "path", "file", "duration", "enum",
    "int", "integer", "number", "float", "double", "bool", "boolean",
    "object", "map", "dict", "array", "list", "any",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class ConfigParameter:
    """One entry of `config`: what the plugin wants to be told."""

    type: str = "string"
    required: bool = False
    env: str = ""
    default: Any = None
    description: str = ""


@dataclass(frozen=True, slots=True)
class SidecarOptions:
    """The section `sidecar`; times in seconds, sizes in bytes, None for the manager's own limit.

    Attributes:
        workers: How many processes there are at least and at most.
        max_jobs: Calls after which a process is replaced, or 0.
        ttl: Age at which a process is replaced, or 0.
        idle_ttl: Time without a call after which a process ends, or 0.
        max_memory: Resident memory above which a process is replaced.
        max_files: Files that a process may have open.
        ring_size: Of each of the two rings in shared memory.
        arena_size: Of shared memory for bytes: what calls come with, and what a process answers.
        strict: Whether noise on stdout is an error and not only logged.
    """

    protocol: str = "json-rpc"
    auto_start: bool = True
    keep_alive: bool = True
    max_retries: int = 3
    env: Mapping[str, str] = field(default_factory=lambda: EMPTY)
    transport: str = "auto"
    ring_size: int = 1 << 18
    arena_size: int = 1 << 28
    args: tuple[str, ...] = ()
    workers: tuple[int, int] = (1, 1)
    max_jobs: int = 0
    ttl: float = 0.0
    idle_ttl: float = 0.0
    timeout: float | None = None
    stop_timeout: float = 5.0
    cancel_timeout: float = 5.0
    max_memory: int | None = None
    max_files: int = 1024
    max_queue: int = 16384
    max_request: int | None = None
    max_response: int | None = None
    strict: bool = False


@dataclass(frozen=True, slots=True)
class WasmOptions:
    """The section `wasm`; None for the usual limit, see `zeno_fast.limits`.

    Attributes:
        memory: Bound of an instance's linear memory, in bytes.
        timeout: Seconds a call may take.
        fuel: Instructions a call may take.
        instances: How many may work at once, or None for as many as the machine has cores.
        fresh: Whether each call gets an instance of its own.
        table: Bound of the elements of each of an instance's tables.
        stack: Bytes of machine stack that the guest's calls may nest.
    """

    memory: int | None = None
    timeout: float | None = None
    fuel: int | None = None
    instances: int | None = None
    fresh: bool = False
    table: int | None = None
    stack: int | None = None


@dataclass(frozen=True, slots=True, repr=False)
class Manifest:
    """What a plugin's folder says of itself; checked, and as it applies to this machine.

    Attributes:
        folder: The plugin's folder, absolute, symbolic links resolved.
        file: The manifest as it was found, for messages.
        type: `wasm` or `sidecar`: what runs here, after `binaries` has chosen.
        binary: As written; see `binary_path` for what was chosen.
        binaries: As written, by system or by system and architecture.
        binary_path: The file that runs here, absolute, symbolic links resolved; it may be missing.
        sha256: 64 lower-case hex digits that the chosen binary must have, or None.
        slots: Declared slots, or None where the manifest declares none.
        warnings: What was odd, each with its position.
        raw: All of the file as data that JSON can carry.
    """

    name: str
    folder: Path
    file: Path
    type: str
    version: str = ""
    author: str = ""
    description: str = ""
    license: str = ""
    homepage: str = ""
    binary: str | None = None
    binaries: Mapping[str, str] = field(default_factory=lambda: EMPTY)
    binary_path: Path | None = None
    requires: Any = None
    config: Mapping[str, ConfigParameter] = field(default_factory=lambda: EMPTY)
    sidecar: SidecarOptions = field(default_factory=SidecarOptions)
    wasm: WasmOptions = field(default_factory=WasmOptions)
    permissions: Permissions = field(default_factory=Permissions)
    slots: tuple[SlotDefinition, ...] | None = None
    sha256: str | None = None
    warnings: tuple[str, ...] = ()
    raw: Mapping[str, Any] = field(default_factory=lambda: EMPTY)

    def __repr__(self) -> str:
        about = f"{self.name} {self.version}".rstrip()
        return f"<Manifest {about}, {self.type}, {self.folder}>"

    @classmethod
    def load(
        cls,
        folder_or_file: str | os.PathLike[str],
        *,
        strict: bool = False,
        allow_absolute_binary: bool = False,
    ) -> Manifest:
        """Read a plugin's manifest.

        Args:
            folder_or_file: The plugin's folder, or its manifest under any name.
            strict: Whether a warning, such as an unknown key, is an error.
            allow_absolute_binary: Whether an absolute path may lead out of the plugin's folder.

        Raises ManifestError where the manifest is wrong, PluginLoadError where there is none or
        where no binary fits this machine. Whether the binary is there and sound is not looked at:
        `zeno_fast.binary.check_binary` does that.
        """
        file = _find(Path(folder_or_file))
        try:
            top = read_yaml(read_file(file), file)
        except OSError as error:
            raise PluginLoadError(
                f"{file}: the manifest cannot be read: {error.strerror}", folder=file.parent
            ) from error
        document = Document(file, strict=strict)
        return _Reader(document, top, allow_absolute_binary, this_machine()).read()


def _find(path: Path) -> Path:
    if not path.exists():
        raise PluginLoadError(f"{path}: no such folder", folder=path)
    if not path.is_dir():
        return path
    file = path / FILE_NAME
    if not file.exists():
        others = sorted(
            entry.name
            for entry in path.iterdir()
            if entry.name.lower() in {"manifest.yml", "manifest.yaml", "manifest.json"}
        )
        hint = f" (found `{others[0]}`: rename it)" if others else ""
        raise PluginLoadError(
            f"{path}: not a plugin: the folder holds no `{FILE_NAME}`{hint}", folder=path
        )
    return file


class _Reader:
    """Turns one document into a Manifest."""

    def __init__(
        self, document: Document, top: MappingNode, allow_absolute: bool, machine: Machine
    ) -> None:
        self.document = document
        self.fields = Fields(document, top)
        self.folder = document.file.parent.resolve()
        self.allow_absolute = allow_absolute
        self.machine = machine

    def read(self) -> Manifest:
        """Read every key."""
        fields = self.fields
        name = self._name()
        self.document.plugin = name
        stated = fields.choice("type", ("wasm", "sidecar"), "wasm")
        described = {
            key: fields.text(key)
            for key in ("version", "author", "description", "license", "homepage")
        }
        requires = fields.plain("requires")
        config = self._config()
        sidecar = self._sidecar()
        wasm = self._wasm()
        permissions = self._permissions()
        slots = self._slots(name)
        chosen = BinaryKeys(
            self.document, fields, self.folder, self.allow_absolute, self.machine
        ).read(stated)
        self._warn_of_idle_sections(stated, chosen.binaries)
        fields.finish(_HOMES)
        return Manifest(
            name=name,
            folder=self.folder,
            file=self.document.file,
            type=WASM if chosen.key == WASM else stated,
            **described,
            binary=chosen.binary,
            binaries=MappingProxyType(dict(chosen.binaries)),
            binary_path=chosen.path,
            requires=requires,
            config=MappingProxyType(config),
            sidecar=sidecar,
            wasm=wasm,
            permissions=permissions,
            slots=slots,
            sha256=chosen.sha256,
            warnings=tuple(self.document.warnings),
            raw=MappingProxyType(plain(fields.node)),
        )

    def _name(self) -> str:
        node = self.fields.get("name")
        expected = "letters, digits, `.`, `_` and `-`, at most 128"
        if node is None:
            entry = self.fields.node.entries.get("name")
            problem = "is empty" if entry else "is missing"
            hint = None if entry else self._misspelt("name")
            raise self.document.error(
                problem, entry[1] if entry else self.fields.node, "name", expected, hint
            )
        name = self.document.text(node, "name")
        if not _NAME.fullmatch(name):
            better = re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip(".-")[:128]
            raise self.document.error(
                f"`{name[:140]}` is not a name for a plugin" if name else "is empty",
                node,
                "name",
                expected,
                f"for example `{better}`" if better else None,
            )
        return name

    def _misspelt(self, key: str) -> str | None:
        entries = self.fields.node.entries
        near = nearest(key, entries)
        return f"did you mean `{near}` on line {entries[near][0].line}?" if near else None

    def _config(self) -> dict[str, ConfigParameter]:
        section = self.fields.section("config")
        found: dict[str, ConfigParameter] = {}
        if section is None:
            return found
        for name in section.node.entries:
            inner = section.section(name)
            if inner is None:
                found[name] = ConfigParameter()
                continue
            kind = inner.text("type", "string")
            if kind.lower() not in _CONFIG_TYPES:
                self.document.warn(
                    f"`{kind}` is not a known type",
                    inner.get("type"),
                    inner.key("type"),
                    hint=did_you_mean(kind, _CONFIG_TYPES),
                )
            default = inner.get("default")
            if isinstance(default, ScalarNode) and kind.lower() in {"string", "str", "text"}:
                self.document.text(default, inner.key("default"))
            found[name] = ConfigParameter(
                type=kind.lower(),
                required=inner.flag("required", False),
                env=inner.text("env"),
                default=inner.plain("default"),
                description=inner.text("description"),
            )
            inner.finish()
        return found

    def _sidecar(self) -> SidecarOptions:
        section = self.fields.section("sidecar")
        if section is None:
            return SidecarOptions()
        protocol = section.choice("protocol", ("json-rpc", "fastcgi", "http"), "json-rpc")
        if protocol != "json-rpc":
            raise self._not_yet(section, "protocol", "`json-rpc`")
        env = section.texts_by_name("env")
        for name in env:
            if not name or "=" in name or "\0" in name:
                node = self._node("sidecar", "env", name)
                raise self.document.error(
                    "is not a name for a variable", node, f"sidecar.env.{name}", "such as `MY_MODE`"
                )
        default = SidecarOptions()
        options = SidecarOptions(
            protocol=protocol,
            auto_start=section.flag("auto_start", default.auto_start),
            keep_alive=section.flag("keep_alive", default.keep_alive),
            max_retries=section.integer("max_retries", default.max_retries, 0),
            env=env,
            transport=section.choice("transport", ("auto", "stdio", "shm"), default.transport),
            ring_size=self._ring_size(section),
            arena_size=self._size(section, "arena_size", 1 << 16) or default.arena_size,
            args=section.texts("args"),
            workers=self._workers(section),
            max_jobs=section.integer("max_jobs", default.max_jobs, 0),
            ttl=self._seconds(section, "ttl", default.ttl),
            idle_ttl=self._seconds(section, "idle_ttl", default.idle_ttl),
            timeout=section.duration("timeout"),
            stop_timeout=self._seconds(section, "stop_timeout", default.stop_timeout),
            cancel_timeout=section.duration("cancel_timeout") or default.cancel_timeout,
            max_memory=self._size(section, "max_memory", 1 << 20),
            max_files=section.integer("max_files", default.max_files, 16, 1 << 20),
            max_queue=section.integer("max_queue", default.max_queue, 1),
            max_request=self._size(section, "max_request", 1024),
            max_response=self._size(section, "max_response", 1024),
            strict=section.flag("strict", default.strict),
        )
        section.finish()
        return options

    def _size(self, section: Fields, name: str, least: int) -> int | None:
        node = section.get(name)
        return None if node is None else self.document.size(node, section.key(name), least, 1 << 50)

    def _ring_size(self, section: Fields) -> int:
        """Read a size and round it up to the next power of two."""
        node = section.get("ring_size")
        if node is None:
            return SidecarOptions().ring_size
        size = self.document.size(node, section.key("ring_size"), 1 << 12, 1 << 30)
        return 1 << (size - 1).bit_length()

    def _seconds(self, section: Fields, name: str, default: float) -> float:
        node = section.get(name)
        if node is None:
            return default
        return self.document.duration(node, section.key(name), zero=True)

    def _workers(self, section: Fields) -> tuple[int, int]:
        """Read `4`, or `1..4` and `0..4` for the least and the most."""
        node = section.get("workers")
        if node is None:
            return SidecarOptions().workers
        found = _RANGE.fullmatch(node.text.strip()) if isinstance(node, ScalarNode) else None
        if found is None or not isinstance(node, ScalarNode):
            count = self.document.integer(node, section.key("workers"), 1, MOST_WORKERS)
            return count, count
        least, most = int(found[1]), int(found[2])
        if not least <= most or not 1 <= most <= MOST_WORKERS:
            raise self.document.error(
                f"`{node.text}` is not a range of processes",
                node,
                section.key("workers"),
                f"the least and the most, such as `1..4`, at most {MOST_WORKERS}",
            )
        return least, most

    def _not_yet(self, section: Fields, name: str, expected: str) -> ManifestError:
        node = section.get(name)
        written = f"`{node.text}`" if isinstance(node, ScalarNode) else "this"
        return self.document.error(
            f"{written} is not available in this version of zeno_fast",
            node,
            section.key(name),
            expected,
        )

    def _wasm(self) -> WasmOptions:
        section = self.fields.section("wasm")
        if section is None:
            return WasmOptions()
        memory, stack = section.get("memory"), section.get("stack")
        options = WasmOptions(
            memory=(
                None
                if memory is None
                else self.document.size(memory, section.key("memory"), 1 << 16, 1 << 32)
            ),
            timeout=section.duration("timeout"),
            fuel=section.integer("fuel", 0, 1) or None,
            instances=section.integer("instances", 0, 1, MOST_INSTANCES) or None,
            fresh=section.flag("fresh", False),
            table=section.integer("table", 0, 1) or None,
            stack=(
                None
                if stack is None
                else self.document.size(stack, section.key("stack"), 1 << 16, 1 << 24)
            ),
        )
        section.finish()
        return options

    def _permissions(self) -> Permissions:
        section = self.fields.section("permissions")
        if section is None:
            return Permissions()
        network = section.texts("network")
        for pattern in network:
            if not understands_url_pattern(pattern):
                self.document.warn(
                    f"`{pattern}` is not a URL pattern and allows nothing",
                    section.get("network"),
                    section.key("network"),
                    "such as `https://api.example.com/*`, `*.example.com` or `*`",
                )
        permissions = Permissions(
            network=network,
            filesystem=section.texts("filesystem"),
            env=section.texts("env"),
            database=section.texts("database"),
            scope=self._scope(section),
        )
        section.finish()
        return permissions

    def _scope(self, section: Fields) -> frozenset[str]:
        node = section.get("scope")
        if node is None:
            return frozenset()
        if isinstance(node, ScalarNode) and isinstance(node.value, bool):
            return frozenset({"read", "write"}) if node.value else frozenset()
        items = node.items if isinstance(node, ListNode) else [node]
        return frozenset(
            self.document.choice(item, section.key("scope"), ("read", "write")) for item in items
        )

    def _slots(self, plugin: str) -> tuple[SlotDefinition, ...] | None:
        node = self.fields.get("slots")
        if node is None:
            return None
        try:
            slots = read_slots({"slots": plain(node)}, plugin)
        except MalformedSlots as error:
            culprit = _at(self.fields.node, error.path)
            raise self.document.error(error.problem, culprit, error.place, error.expected) from None
        if slots is None:
            raise self.document.error("lists no slots", node, "slots", "a list of slots")
        check_declared(self.document, node)
        return slots

    def _warn_of_idle_sections(self, stated: str, binaries: Mapping[str, str]) -> None:
        entries = self.fields.node.entries
        if stated == WASM and "sidecar" in entries:
            hint = None if "type" in entries else "did you mean to add `type: sidecar`?"
            self.document.warn(
                "has no effect, as the plugin's `type` is `wasm`",
                entries["sidecar"][0],
                "sidecar",
                hint=hint,
            )
        if stated != WASM and "wasm" in entries and WASM not in binaries:
            self.document.warn(
                "has no effect, as the plugin's `type` is `sidecar` and `binaries` has no `wasm`",
                entries["wasm"][0],
                "wasm",
            )

    def _node(self, *path: str) -> Node | None:
        return _at(self.fields.node, path)


def _at(node: Node, path: tuple[str | int, ...]) -> Node:
    """Return the node at a path, or the deepest on the way to it."""
    for step in path:
        if isinstance(node, ListNode) and isinstance(step, int) and step < len(node.items):
            node = node.items[step]
        elif isinstance(node, MappingNode) and step in node.entries:
            node = node.entries[str(step)][1]
        else:
            break
    return node


# Where a key belongs that stands at the top by mistake.
_HOMES = {
    option.name: section
    for section, options in (
        ("wasm", WasmOptions),
        ("sidecar", SidecarOptions),
        ("permissions", Permissions),
    )
    for option in dataclasses.fields(options)
}

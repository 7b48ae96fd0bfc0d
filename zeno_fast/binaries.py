"""Which file of a plugin's folder runs on this machine: `binary`, `binaries` and `sha256`."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PureWindowsPath

from zeno_fast.errors import PluginLoadError
from zeno_fast.platforms import ARCHITECTURES, SYSTEMS, WASM, Machine, normal_key
from zeno_fast.schema import Document, Fields, did_you_mean
from zeno_fast.yaml_source import MappingNode, Node

__all__ = ["BinaryChoice", "BinaryKeys"]

_SHA256 = re.compile(r"(?:sha256:)?([0-9a-fA-F]{64})")


@dataclass(frozen=True, slots=True)
class BinaryChoice:
    """What runs here.

    Attributes:
        key: The key of `binaries` in its normal spelling, or None where `binary` was taken.
        path: Absolute, symbolic links resolved; the file may be missing.
        sha256: The digest that it must have, or None.
        binary: As written.
        binaries: As written.
    """

    key: str | None
    path: Path
    sha256: str | None
    binary: str | None
    binaries: Mapping[str, str]


class BinaryKeys:
    """Reads the keys that say where the plugin's binary is.

    Args:
        document: Where errors go.
        fields: The top of the manifest.
        folder: The plugin's folder, symbolic links resolved.
        allow_absolute: Whether an absolute path may lead out of the folder.
        machine: What has to fit.
    """

    def __init__(
        self,
        document: Document,
        fields: Fields,
        folder: Path,
        allow_absolute: bool,
        machine: Machine,
    ) -> None:
        self.document = document
        self.fields = fields
        self.folder = folder
        self.allow_absolute = allow_absolute
        self.machine = machine

    def read(self, stated: str) -> BinaryChoice:
        """Choose for the `type` that the manifest states. Raises ManifestError, PluginLoadError."""
        binary = self._binary_text()
        binaries = self._by_platform("binaries")
        key, path = self._choose(stated, binary, binaries)
        return BinaryChoice(
            key=key,
            path=path,
            sha256=self._sha256(key),
            binary=binary,
            binaries={written: text for written, _, text in binaries.values()},
        )

    def _binary_text(self) -> str | None:
        node = self.fields.get("binary")
        return None if node is None else self._path_text(node, "binary")

    def _path_text(self, node: Node, key: str) -> str:
        text = self.document.text(node, key, "the path of a file in the plugin's folder")
        if not text.strip():
            raise self.document.error(
                "is empty", node, key, "the path of a file in the plugin's folder"
            )
        return text

    def _by_platform(self, name: str) -> dict[str, tuple[str, Node, str]]:
        """Read a mapping by platform: normal key -> (key as written, node, text)."""
        section = self.fields.section(name)
        found: dict[str, tuple[str, Node, str]] = {}
        if section is None:
            return found
        for key, (key_node, node) in section.node.entries.items():
            normal = normal_key(key)
            if normal is None:
                raise self.document.error(
                    "no such platform",
                    key_node,
                    section.key(key),
                    "`windows`, `linux`, `darwin`, `wasm`, or such as `linux-x86_64`",
                    _platform_hint(key),
                )
            if normal in found:
                raise self.document.error(
                    f"means the same as `{found[normal][0]}`", key_node, section.key(key), "one"
                )
            found[normal] = (key, node, self._path_text(node, section.key(key)))
        return found

    def _choose(
        self, stated: str, binary: str | None, binaries: dict[str, tuple[str, Node, str]]
    ) -> tuple[str | None, Path]:
        """Return the key of `binaries` that was chosen, None for `binary`, and the file."""
        key = None if stated == WASM else self.machine.choose(binaries)
        if key is None and WASM in binaries:
            key = WASM
        if key is not None:
            written, node, text = binaries[key]
            return key, self._locate(text, node, f"binaries.{written}")
        if binary is not None:
            node_of_binary = self.fields.get("binary")
            assert node_of_binary is not None
            return None, self._locate(binary, node_of_binary, "binary")
        if not binaries:
            raise self.document.error(
                "is missing", self.fields.node, "binary", "the path of a file in the folder"
            )
        if stated == WASM:
            raise self.document.error(
                "lists native programs only, and the plugin's `type` is `wasm`",
                self.fields.get("binaries"),
                "binaries",
                "a key `wasm`, or `type: sidecar` in the manifest",
            )
        offered = ", ".join(f"`{written}` ({text})" for written, _, text in binaries.values())
        raise PluginLoadError(
            f"plugin {self.document.plugin!r}: no binary for this machine ({self.machine}); "
            f"the folder offers {offered}; add one of "
            + ", ".join(f"`{key}`" for key in (*self.machine.keys(), WASM))
            + f" to `binaries` in {self.document.file}",
            plugin=self.document.plugin,
            folder=self.folder,
        )

    def _locate(self, text: str, node: Node, key: str) -> Path:
        """Return the real path of a binary; it has to lie in the plugin's folder."""
        windows = PureWindowsPath(text)
        if os.name != "nt" and windows.drive:
            raise self.document.error(
                f"`{text}` is a path of Windows", node, key, "a path in the plugin's folder"
            )
        absolute = Path(text).is_absolute()
        real = Path(os.path.realpath(self.folder / text))
        if real.is_relative_to(self.folder) or (absolute and self.allow_absolute):
            return real
        if absolute:
            raise self.document.error(
                f"`{text}` is an absolute path outside the plugin's folder",
                node,
                key,
                "a path in the plugin's folder",
                "the host may allow it: allow_absolute_binaries=True",
            )
        raise self.document.error(
            f"`{text}` leads out of the plugin's folder, to {real}",
            node,
            key,
            "a path in the plugin's folder",
        )

    def _sha256(self, chosen_key: str | None) -> str | None:
        node = self.fields.get("sha256")
        if node is None:
            return None
        if not isinstance(node, MappingNode):
            return self._digest(node, "sha256")
        digests = {
            key: self._digest(value, f"sha256.{written}")
            for key, (written, value, _) in self._by_platform("sha256").items()
        }
        key = chosen_key or self.machine.choose(digests) or WASM
        if key not in digests:
            raise self.document.error(
                "has no digest for the binary that would run here", node, "sha256", f"`{key}: ...`"
            )
        return digests[key]

    def _digest(self, node: Node, key: str) -> str:
        text = self.document.text(node, key)
        match = _SHA256.fullmatch(text)
        if match is None:
            problem = f"`{text[:80]}` is not a SHA-256 digest"
            raise self.document.error(problem, node, key, "64 hex digits")
        return match[1].lower()


def _platform_hint(key: str) -> str | None:
    others = {"macos": "darwin", "mac": "darwin", "osx": "darwin", "win": "windows",
              "win32": "windows", "win64": "windows-x86_64"}  # fmt: skip
    if key.lower() in others:
        return f"did you mean `{others[key.lower()]}`?"
    choices = [*SYSTEMS, WASM]
    choices += [f"{system}-{arch}" for system in SYSTEMS for arch in ARCHITECTURES]
    return did_you_mean(key, choices)

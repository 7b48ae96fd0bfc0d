"""From a manifest to what is run: the bytes that were checked are the bytes that run.

Where the manifest gives a `sha256`, a sidecar's program is copied into a sealed file in memory and
run from there, so that replacing the file after the check changes nothing. Such a program is found
by its interpreter and by itself under `/proc/self/fd`, not in its folder: one that looks for its
own libraries beside its executable cannot be given a `sha256`.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import stat
import sys
import tempfile
import warnings
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

from zeno_fast.errors import PluginLoadError
from zeno_fast.formats import (
    COMPONENT_ADVICE,
    HEAD,
    describe,
    elf_loader,
    is_program,
    why_not_here,
)
from zeno_fast.manifest import Manifest
from zeno_fast.platforms import WASM, this_machine

if sys.platform == "linux":
    import fcntl

__all__ = ["Executable", "build_command", "check_binary", "open_executable", "read_wasm"]

# By the file's ending; the interpreter's options stand before the file.
_INTERPRETERS: dict[str, tuple[str, ...]] = {
    ".py": (sys.executable or "python3", "-u"),
    ".js": ("node",),
    ".mjs": ("node",),
    ".cjs": ("node",),
    ".php": ("php",),
    ".rb": ("ruby",),
    ".pl": ("perl",),
    ".lua": ("lua",),
    ".sh": ("sh",),
}
_MFD_EXEC = 0x10  # not in `os` before Python 3.14
_WASM_MODULE = b"\0asm\1\0\0\0"
_CHUNK = 1 << 20


class Executable:
    """What to start for a sidecar; may be started any number of times until `close`.

    Attributes:
        argv: The program, or its interpreter, and all arguments.
        pass_fds: Descriptors that the child has to inherit under the same numbers.
    """

    def __init__(
        self,
        argv: list[str],
        *,
        descriptor: int | None = None,
        temporary: Path | None = None,
    ) -> None:
        self.argv = argv
        self.pass_fds: tuple[int, ...] = () if descriptor is None else (descriptor,)
        self._temporary = temporary
        self.closed = False

    def close(self) -> None:
        """Free the private copy, where there is one; processes already started are not affected."""
        if self.closed:
            return
        self.closed = True
        for descriptor in self.pass_fds:
            os.close(descriptor)
        if self._temporary is not None:
            shutil.rmtree(self._temporary, ignore_errors=True)

    def __enter__(self) -> Executable:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def __del__(self) -> None:
        if getattr(self, "closed", True):
            return
        if self.pass_fds or self._temporary is not None:
            warnings.warn(f"unclosed {self.argv[0]} of a plugin", ResourceWarning, stacklevel=2)
        self.close()


def read_wasm(manifest: Manifest) -> bytes:
    """Read a WASM plugin's module once, and check these bytes. Raises PluginLoadError.

    A file whose name ends in `.wat` may hold text; whoever runs it compiles that.
    """
    binary = _Binary(manifest)
    with binary.open() as stream:
        data = stream.read()
    binary.check_digest(hashlib.sha256(data).hexdigest())
    is_text = binary.path.suffix.lower() == ".wat" and data.lstrip().startswith((b"(", b";;"))
    if not is_text and not data.startswith(_WASM_MODULE):
        found = describe(data[:HEAD])
        if found == "a WASM module":
            found = f"a WASM module of version {int.from_bytes(data[4:8], 'little')}"
        elif found is None and binary.path.suffix.lower() in _INTERPRETERS:
            found = "a script, by its name"
        hint = ""
        if found == "a WASM component":
            hint = COMPONENT_ADVICE
        elif found == "WebAssembly text":
            hint = "; let its name end in .wat, or compile it, with wat2wasm for example"
        elif is_program(data[:8]) or (found or "").startswith("a script"):
            hint = "; to run it as a program, add `type: sidecar` to the manifest"
        kind = f"is {found}" if found else f"begins with {data[:16]!r}"
        raise binary.error(f"not a WASM module: it {kind}{hint}")
    return data


def open_executable(manifest: Manifest) -> Executable:
    """Make a sidecar's program ready to be started.

    Whatever can be known to go wrong at the start is said here. The caller owns the result.
    Raises PluginLoadError.
    """
    binary = _Binary(manifest)
    with binary.open() as stream:
        head = stream.read(HEAD)
        prefix = binary.interpreter(head)
        if manifest.sha256 is None:
            return Executable([*prefix, str(binary.path), *manifest.sidecar.args])
        stream.seek(0)
        descriptor = _sealed_copy(stream, manifest.name)
        if descriptor is None:
            stream.seek(0)
            return _temporary_executable(binary, stream, prefix)
    executable = Executable(
        [
            *prefix,
            # Node would else look for the file by what the link says, `/memfd:...`.
            *(("--preserve-symlinks-main",) if _is_node(prefix) else ()),
            f"/proc/self/fd/{descriptor}",
            *manifest.sidecar.args,
        ],
        descriptor=descriptor,
    )
    try:
        binary.check_digest(_digest_of(descriptor))
    except BaseException:
        executable.close()
        raise
    return executable


def build_command(file: Path) -> str:
    """Return what a comment `# build: ...` in a manifest says, or ""."""
    try:
        text = file.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""  # it was there when the plugin was loaded; it is only asked for a hint
    for line in text.splitlines():
        mark, _, command = line.partition("build:")
        if mark.strip() == "#":
            # The line `# build: nothing to build` is for readers.
            return "" if command.split()[:1] == ["nothing"] else command.strip()
    return ""


def check_binary(manifest: Manifest) -> None:
    """Check that the binary is there, sound and of this machine, without running it.

    Raises PluginLoadError.
    """
    if manifest.type == WASM:
        read_wasm(manifest)
    else:
        open_executable(manifest).close()


class _Binary:
    """One plugin's binary, and what can be wrong with it."""

    def __init__(self, manifest: Manifest) -> None:
        self.manifest = manifest
        self.path = manifest.binary_path or manifest.folder / (manifest.binary or "")

    def error(self, problem: str) -> PluginLoadError:
        """Make the error that names plugin and file."""
        return PluginLoadError(
            f"plugin {self.manifest.name!r}: {self.path}: {problem}",
            plugin=self.manifest.name,
            folder=self.manifest.folder,
        )

    def open(self) -> BinaryIO:
        """Open the file for reading; it is not empty."""
        chosen = self.manifest.binary_path
        if chosen is not None and Path(os.path.realpath(chosen)) != chosen:
            raise self.error("it became a symbolic link since the manifest was read")
        try:
            # A named pipe would make a blocking open wait for its writer.
            descriptor = os.open(
                self.path,
                os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0),
            )
        except FileNotFoundError:
            raise self.error(f"no such file{self._hint_for_missing()}") from None
        except OSError as error:
            if self.path.is_dir():
                raise self.error("it is a directory, not a program") from None
            raise self.error(f"it cannot be read: {error.strerror}") from error
        status = os.fstat(descriptor)
        if stat.S_ISDIR(status.st_mode):
            problem = "it is a directory, not a program"
        elif not stat.S_ISREG(status.st_mode):
            problem = "it is not a regular file"
        elif status.st_size == 0:
            problem = "the file is empty"
        else:
            return open(descriptor, "rb")
        os.close(descriptor)
        raise self.error(problem)

    def check_digest(self, found: str) -> None:
        """Compare with the manifest's `sha256`, where there is one."""
        if self.manifest.sha256 not in (None, found):
            raise self.error(
                f"its SHA-256 is {found}, and the manifest says {self.manifest.sha256}; "
                "the file was changed, or the manifest is of another version"
            )

    def interpreter(self, head: bytes) -> list[str]:
        """Return what has to stand before the file in `argv`; raise where it cannot run."""
        if is_program(head):
            self._check_program(head)
            return []
        kind = describe(head)
        if kind and kind.startswith("a WASM"):
            raise self.error(
                f"it is {kind}, and the manifest says `type: sidecar`; did you mean `type: wasm`?"
            )
        command = _INTERPRETERS.get(self.path.suffix.lower())
        if command is not None:
            program = shutil.which(command[0])
            if program is None:
                raise self.error(
                    f"its interpreter `{command[0]}` is not installed, or not on the PATH"
                )
            return [program, *command[1:]]
        if not head.startswith(b"#!"):
            found = f"it is {kind}" if kind else f"it begins with {head[:16]!r}"
            raise self.error(
                f"neither a program nor a script ({found}); a script's first line has to name "
                "its interpreter, such as `#!/usr/bin/env php`"
            )
        self._check_mode()
        self._check_shebang(head)
        return []

    def _check_program(self, head: bytes) -> None:
        problem = why_not_here(head, this_machine())
        if problem:
            raise self.error(f"{problem}; see `binaries` for a file per system")
        self._check_mode()
        loader = elf_loader(head) if this_machine().system == "linux" else None
        if loader is not None and not os.path.exists(loader):
            raise self.error(
                f"it was built for another C library: its loader {loader} is not on this machine"
            )

    def _check_mode(self) -> None:
        if os.name != "nt" and not os.access(self.path, os.X_OK):
            mode = stat.S_IMODE(self.path.stat().st_mode)
            raise self.error(f"not executable (mode {mode:04o}); `chmod +x {self.path}` would do")

    def _check_shebang(self, head: bytes) -> None:
        line = head[2:].split(b"\n", 1)[0].decode("utf-8", "replace")
        words = line.strip(" \t").split()
        if not words:
            raise self.error("its first line `#!` names no interpreter")
        if line.endswith("\r"):
            raise self.error("its first line ends in CR LF: save it with Unix line ends")
        program = words[0]
        if not os.path.exists(program):
            raise self.error(f"its interpreter {program} does not exist")
        named = [word for word in words[1:] if not word.startswith("-") and "=" not in word]
        if os.path.basename(program) == "env" and named and shutil.which(named[0]) is None:
            raise self.error(f"its interpreter `{named[0]}` is not installed, or not on the PATH")

    def _hint_for_missing(self) -> str:
        path = self.path
        other = path.with_suffix("") if path.suffix == ".exe" else Path(f"{path}.exe")
        if other.is_file():
            return f", but there is `{other.name}`: is that the one that `binary` should name?"
        if os.name != "nt" and "\\" in path.name:
            return "; write the path with `/`"
        build = build_command(self.manifest.file)
        if build:
            return f"; build it with: {build}"
        if not path.parent.is_dir():
            return f": there is no folder {path.parent}"
        return "; was the plugin built?"


def _is_node(prefix: list[str]) -> bool:
    return bool(prefix) and os.path.basename(prefix[0]) == "node"


def _sealed_copy(stream: BinaryIO, name: str) -> int | None:
    """Copy a file into memory that nobody can change any more; None where that is not possible."""
    if sys.platform != "linux":
        return None
    flags = os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING
    try:
        memory = os.memfd_create(f"zeno-{name}", flags | _MFD_EXEC)
    except OSError:
        try:
            memory = os.memfd_create(f"zeno-{name}", flags)  # the flag is newer than Linux 6.2
        except OSError:
            return None
    try:
        while chunk := stream.read(_CHUNK):
            view = memoryview(chunk)
            while view:
                view = view[os.write(memory, view) :]
        fcntl.fcntl(
            memory,
            fcntl.F_ADD_SEALS,
            fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE,
        )
        if not os.fstat(memory).st_mode & stat.S_IXUSR:
            return None  # vm.memfd_noexec
        # Above the standard streams, which the child replaces.
        return fcntl.fcntl(memory, fcntl.F_DUPFD_CLOEXEC, 3)
    finally:
        os.close(memory)


def _digest_of(descriptor: int) -> str:
    digest = hashlib.sha256()
    offset = 0
    while chunk := os.pread(descriptor, _CHUNK, offset):
        digest.update(chunk)
        offset += len(chunk)
    return digest.hexdigest()


def _temporary_executable(binary: _Binary, stream: BinaryIO, prefix: list[str]) -> Executable:
    """Copy the program into a folder that only this user can enter, and check the copy."""
    folder = Path(tempfile.mkdtemp(prefix="zeno-"))
    copy = folder / binary.path.name
    executable = Executable([*prefix, str(copy), *binary.manifest.sidecar.args], temporary=folder)
    try:
        descriptor = os.open(copy, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o700)
        with open(descriptor, "wb") as target:
            shutil.copyfileobj(stream, target)
        digest = hashlib.sha256()
        with open(copy, "rb") as source:
            while chunk := source.read(_CHUNK):
                digest.update(chunk)
        binary.check_digest(digest.hexdigest())
    except BaseException:
        executable.close()
        raise
    return executable

"""Compiled modules on disk, private to the user, and checked before a byte of them is run.

The library has a cache of its own. It loads what it finds there without a look at it: with one bit
of a file changed, other machine code was run, or the process aborted. Here each file begins with
the SHA-256 of the rest, and of the library's version, the settings and the module it was made for.
What is for another processor the library refuses by itself.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import stat
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

import wasmtime
from wasmtime import WasmtimeError

log = logging.getLogger("zeno_fast.wasm")

DIGEST_SIZE = 32
MOST_NBYTES = 1 << 30  # kept in all; what was not used for longest goes first
_refused: set[str] = set()  # what was said once


def compile_cached(engine: wasmtime.Engine, settings: str, code: bytes) -> wasmtime.Module:
    """Return a compiled module, from the cache where it is there and whole.

    Args:
        settings: What of the engine's settings changes the code; another text, another file.

    Raises WasmtimeError where the module cannot be compiled.
    """
    try:
        folder = cache_folder()
    except OSError as error:
        if str(error) not in _refused:
            _refused.add(str(error))
            log.info("WASM modules are compiled anew each time: %s", error)
        return wasmtime.Module(engine, code)
    key = hashlib.sha256(
        f"wasmtime {version('wasmtime')}, {sys.platform}, {settings}\n".encode() + code
    ).digest()
    file = folder / key.hex()
    module = _load(engine, file, key)
    if module is None:
        module = wasmtime.Module(engine, code)
        try:
            _store(file, key, bytes(module.serialize()))
        except OSError as error:
            log.warning("a compiled WASM module was not kept in %s: %s", folder, error)
    return module


def cache_folder() -> Path:
    """Return the user's own folder for compiled code, made where it is missing.

    Raises OSError where there can be none that others cannot write to.
    """
    folder = Path(os.path.realpath(_base())) / "zeno_fast" / "wasm"
    _make_private(folder)
    if hasattr(os, "geteuid"):
        # Whoever may write to one of them could have the host run what he likes.
        base = folder.parent.parent
        for path in (folder, folder.parent):
            problem = _who_else(os.lstat(path))
            if problem:
                raise PermissionError(f"{path} {problem}")
        found = os.lstat(base)
        if found.st_mode & (stat.S_IWGRP | stat.S_IWOTH) and not found.st_mode & stat.S_ISVTX:
            raise PermissionError(f"{base} can be written to by others")
    return folder


def _who_else(found: os.stat_result) -> str:
    """Say who but the user can change a file or folder, "" where nobody can."""
    if found.st_uid != os.geteuid():
        return "belongs to another user"
    if found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        return "can be written to by others"
    return ""


def _make_private(folder: Path) -> None:
    """Make a folder and those above it that are missing, all for the user alone."""
    if not folder.is_dir():
        if folder.parent != folder:
            _make_private(folder.parent)
        folder.mkdir(mode=0o700, exist_ok=True)


def _base() -> Path:
    if sys.platform == "win32":
        named = os.environ.get("LOCALAPPDATA", "")
        default = Path("~", "AppData", "Local")
    elif sys.platform == "darwin":
        named = ""
        default = Path("~", "Library", "Caches")
    else:
        named = os.environ.get("XDG_CACHE_HOME", "")
        default = Path("~", ".cache")
    try:
        return Path(named) if Path(named).is_absolute() else default.expanduser()
    except RuntimeError as error:  # there is no home
        raise FileNotFoundError(str(error)) from None


def _load(engine: wasmtime.Engine, file: Path, key: bytes) -> wasmtime.Module | None:
    """Return the module in a file; None where it is missing, damaged or for another machine."""
    found = _read_own(file)
    if found is None:
        return None
    digest, code = found
    if digest != _digest(key, code):
        log.warning("%s is damaged; the module is compiled anew", file)
        return None
    try:
        return wasmtime.Module.deserialize(engine, code)
    except WasmtimeError as error:
        log.info("%s is not for this machine; the module is compiled anew: %s", file, error)
        return None


def _read_own(file: Path) -> tuple[bytes, bytes] | None:
    """Return the digest and the code in a file that only the user can have written, or None."""
    # Neither is a link followed, nor the other end of a pipe waited for.
    flags = os.O_RDONLY
    for name in ("O_NOFOLLOW", "O_NONBLOCK", "O_BINARY"):
        flags |= getattr(os, name, 0)
    try:
        descriptor = os.open(file, flags)
    except OSError:
        return None
    try:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode):
            return None
        problem = _who_else(found) if hasattr(os, "geteuid") else ""
        if problem:
            log.warning("%s %s and is not used", file, problem)
            return None
        with open(descriptor, "rb", buffering=0, closefd=False) as stream:
            digest, code = stream.read(DIGEST_SIZE), stream.read()
    except OSError as error:
        log.warning("%s cannot be read: %s", file, error)
        return None
    finally:
        os.close(descriptor)
    with contextlib.suppress(OSError):
        os.utime(file)  # it was of use
    return digest, code


def _store(file: Path, key: bytes, code: bytes) -> None:
    """Write a file at once, whoever else does the same. Raises OSError."""
    descriptor, name = tempfile.mkstemp(dir=file.parent, prefix="new-")
    try:
        with open(descriptor, "wb") as stream:
            stream.write(_digest(key, code))
            stream.write(code)
        os.replace(name, file)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(name)
        raise
    _tidy(file.parent)


def _digest(key: bytes, code: bytes) -> bytes:
    digest = hashlib.sha256(key)
    digest.update(code)
    return digest.digest()


def _tidy(folder: Path) -> None:
    """Remove what was not used for longest, where there is too much."""
    found = []
    for file in folder.iterdir():
        with contextlib.suppress(OSError):  # another process tidies as well
            state = file.lstat()
            found.append((state.st_mtime, state.st_size, file))
    nbytes = 0
    for _, size, file in sorted(found, reverse=True):
        nbytes += size
        if nbytes > MOST_NBYTES:
            with contextlib.suppress(OSError):
                file.unlink()

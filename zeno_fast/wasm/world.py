"""What a WASM guest sees of the machine: the variables and folders that its manifest grants."""

from __future__ import annotations

import ctypes
import os
import posixpath
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import wasmtime
from wasmtime import WasmtimeError, _ffi

from zeno_fast._guest_output import RELEASE, WRITE, GuestOutput
from zeno_fast.errors import PluginLoadError, PluginUnavailable
from zeno_fast.log import plugin_logger
from zeno_fast.permissions import granted_path, granted_variables, outermost_grants

if TYPE_CHECKING:
    from zeno_fast.manifest import Manifest

WRITE_TYPE = ctypes.CFUNCTYPE(
    ctypes.c_ssize_t, ctypes.c_void_p, ctypes.POINTER(ctypes.c_ubyte), ctypes.c_size_t
)
RELEASE_TYPE = ctypes.CFUNCTYPE(None, ctypes.c_void_p)

# The process in which the library's threads for files were started: a fork leaves them behind.
_process_with_files: list[int] = []


@dataclass(frozen=True, slots=True)
class World:
    """The same for every instance of a plugin.

    Attributes:
        plugin: Its name.
        variables: The guest's environment.
        folders: Host path and guest path of each folder that the guest may use.
    """

    plugin: str
    variables: tuple[tuple[str, str], ...] = ()
    folders: tuple[tuple[str, str], ...] = ()

    @classmethod
    def of(cls, manifest: Manifest) -> World:
        """Return what a manifest grants, and log what of it a WASM guest cannot be given.

        Raises PluginLoadError.
        """
        folders: dict[str, str] = {}
        for grant in outermost_grants(manifest.permissions, manifest.folder):
            host, guest = _folder(manifest, grant)
            if os.path.isdir(host):
                if folders.setdefault(guest, host) != host:
                    raise PluginLoadError(
                        f"plugin {manifest.name!r}: permissions.filesystem grants two folders "
                        f"that a WASM guest would both see as {guest}: {folders[guest]} and "
                        f"{host}; name one of them by its absolute path",
                        plugin=manifest.name,
                        folder=manifest.folder,
                    )
            else:
                what = "is a file" if os.path.exists(host) else "does not exist"
                plugin_logger(manifest.name).warning(
                    "permissions.filesystem: %s %s; only folders are open to a WASM guest itself, "
                    "files to the host functions it calls", host, what,
                )  # fmt: skip
        if folders:
            if not _process_with_files:
                _process_with_files.append(os.getpid())
            elif _process_with_files[0] != os.getpid():
                raise PluginLoadError(
                    f"plugin {manifest.name!r} uses files through WASI, which this process cannot "
                    f"offer: it was forked from {_process_with_files[0]}, where the threads for "
                    "that stayed behind; start processes by `spawn` instead",
                    plugin=manifest.name,
                    folder=manifest.folder,
                )
        variables = granted_variables(manifest.permissions)
        return cls(
            manifest.name,
            tuple((name, value) for name, value in variables.items() if _is_text(name + value)),
            tuple((host, guest) for guest, host in folders.items()),
        )

    def new_wasi(self) -> tuple[wasmtime.WasiConfig, GuestOutput | None]:
        """Return the configuration of one instance's WASI, and where the library writes what it
        prints; None where printing is left to the host.

        Raises PluginLoadError where a granted folder is no more.
        """
        wasi = wasmtime.WasiConfig()
        wasi.env = self.variables
        for host, guest in self.folders:
            try:
                wasi.preopen_dir(host, guest)
            except WasmtimeError:
                raise PluginLoadError(
                    f"plugin {self.plugin!r}: the folder {host}, which its manifest grants, cannot "
                    "be opened any more",
                    plugin=self.plugin,
                ) from None
        if not self.folders:
            return wasi, None
        output = GuestOutput()
        write, release = WRITE_TYPE(WRITE), RELEASE_TYPE(RELEASE)
        _ffi.wasi_config_set_stdout_custom(wasi.ptr(), write, output.retain(0), release)
        _ffi.wasi_config_set_stderr_custom(wasi.ptr(), write, output.retain(1), release)
        return wasi, output

    def check_process(self) -> None:
        """Raise PluginUnavailable in the child of a fork, where a guest with files would hang."""
        if self.folders and _process_with_files[0] != os.getpid():
            raise PluginUnavailable(
                f"plugin {self.plugin!r} uses files through WASI, and was loaded before this "
                f"process was forked from {_process_with_files[0]}; call it there, or start "
                "processes by `spawn`",
                plugin=self.plugin,
            )


def _folder(manifest: Manifest, grant: str) -> tuple[str, str]:
    """Return the host's path of a grant, links resolved, and the path that the guest sees.

    A relative one is seen from the root, `./data` as /data, as guests have no working directory.
    """
    if grant == "*":
        return os.sep, "/"
    written = granted_path(grant)
    host = os.path.realpath(manifest.folder / written)
    if Path(written).is_absolute():
        return host, Path(os.path.normpath(written)).as_posix()
    relative = posixpath.normpath(Path(written).as_posix())
    if relative == ".." or relative.startswith("../"):
        return host, Path(host).as_posix()
    return host, posixpath.normpath("/" + relative)


def _is_text(value: str) -> bool:
    """Tell whether WASI can carry a variable: those that are no UTF-8 it cannot."""
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True

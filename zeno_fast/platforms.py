"""Which machine this is, and which key of `binaries` fits it."""

from __future__ import annotations

import functools
import os
import platform
import sysconfig
from collections.abc import Iterable
from dataclasses import dataclass

__all__ = [
    "ARCHITECTURES",
    "SYSTEMS",
    "WASM",
    "Machine",
    "normal_key",
    "processors",
    "this_machine",
]

WASM = "wasm"
SYSTEMS = ("windows", "linux", "darwin")
# Canonical name -> other names that machines, compilers and people use.
ARCHITECTURES = {
    "x86_64": ("amd64", "x64"),
    "arm64": ("aarch64",),
    "i686": ("i386", "i586", "x86", "386"),
    "arm": ("armv6l", "armv7l", "armv8l", "armhf"),
    "riscv64": (),
    "ppc64le": (),
    "s390x": (),
    "loongarch64": (),
}
_ALIASES = {alias: name for name, aliases in ARCHITECTURES.items() for alias in (name, *aliases)}
_LIBCS = ("musl", "gnu")


@dataclass(frozen=True, slots=True)
class Machine:
    """An operating system, an architecture and, on Linux, a C library (`gnu` or `musl`)."""

    system: str
    arch: str
    libc: str = ""

    def keys(self) -> tuple[str, ...]:
        """Return the keys of `binaries` that name native programs for it, the most exact first."""
        exact = f"{self.system}-{self.arch}"
        with_libc = (f"{exact}-{self.libc}",) if self.libc else ()
        return (*with_libc, exact, self.system)

    def choose(self, offered: Iterable[str]) -> str | None:
        """Return the most exact of the (normal) keys that fits, or None."""
        names = set(offered)
        return next((key for key in self.keys() if key in names), None)

    def __str__(self) -> str:
        return f"{self.system}-{self.arch}" + (f"-{self.libc}" if self.libc else "")


def normal_key(key: str) -> str | None:
    """Return a key of `binaries` in its normal spelling (`linux-amd64` -> `linux-x86_64`).

    Returns None where it names nothing known.
    """
    system, *rest = key.split("-")
    if key == WASM or key in SYSTEMS:
        return key
    if system not in SYSTEMS or not 1 <= len(rest) <= 2 or rest[0] not in _ALIASES:
        return None
    if len(rest) == 2 and (system != "linux" or rest[1] not in _LIBCS):
        return None
    return "-".join((system, _ALIASES[rest[0]], *rest[1:]))


@functools.cache
def this_machine() -> Machine:
    """Return the machine that this interpreter runs on."""
    system = platform.system().lower()
    arch = platform.machine().lower()
    libc = ""
    if system == "linux":
        libc = "musl" if "musl" in str(sysconfig.get_config_var("HOST_GNU_TYPE")) else "gnu"
    return Machine(system, _ALIASES.get(arch, arch), libc)


def processors() -> int:
    """Return the number of processors that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1

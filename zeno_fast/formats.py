"""What kind of file a binary is, by its first bytes, and whether this machine can run it."""

from __future__ import annotations

import struct

from zeno_fast.platforms import Machine

__all__ = ["HEAD", "describe", "elf_loader", "is_program", "why_not_here"]

HEAD = 1 << 16  # so many bytes hold the headers of every program seen

_ELF = b"\x7fELF"
_ELF_MACHINES = {
    3: "i686", 8: "mips", 20: "ppc", 21: "ppc64", 22: "s390x", 40: "arm", 62: "x86_64",
    183: "arm64", 243: "riscv64", 258: "loongarch64",
}  # fmt: skip
_ELF_RELOCATABLE = 1
_PT_INTERP = 3
_MACH_O = (
    b"\xfe\xed\xfa\xce", b"\xce\xfa\xed\xfe", b"\xfe\xed\xfa\xcf", b"\xcf\xfa\xed\xfe",
    b"\xca\xfe\xba\xbe",
)  # fmt: skip
_WASM = b"\0asm"
_MARKS = (
    ((b"MZ",), "a Windows program"),
    (_MACH_O, "a macOS program"),
    ((b"PK\3\4",), "a ZIP archive"),
)
COMPONENT_ADVICE = (
    ", and plugins are modules: build it for wasm32-wasip1, without `wasm-tools component new`"
)
_ALSO_RUNS = {"x86_64": ("i686",), "arm64": ("arm",)}


def describe(head: bytes) -> str | None:
    """Name the kind of file that begins like this, None for one that has no mark."""
    if head.startswith(_ELF):
        return f"a Linux program for {_elf_machine(head)}"
    if head.startswith(_WASM):
        return "a WASM component" if head[6:8] == b"\1\0" else "a WASM module"
    if head.lstrip().startswith((b"(module", b"(component", b";;")):
        return "WebAssembly text"
    if head.startswith(b"#!"):
        return "a script"
    return next((kind for marks, kind in _MARKS if head.startswith(marks)), None)


def is_program(head: bytes) -> bool:
    """Tell whether the file is a native program of any system."""
    return head.startswith((_ELF, b"MZ", *_MACH_O))


def why_not_here(head: bytes, machine: Machine) -> str | None:
    """Say why the native program cannot run on this machine, or None where it could."""
    kind = describe(head)
    system = "linux" if head.startswith(_ELF) else "windows" if head.startswith(b"MZ") else "darwin"
    if system != machine.system:
        return f"it is {kind}, and this machine is {machine}"
    if system != "linux":
        return None
    arch = _elf_machine(head)
    if arch != machine.arch and arch not in _ALSO_RUNS.get(machine.arch, ()):
        return f"it is {kind}, and this machine is {machine}"
    if len(head) >= 18 and _unpack(head, "H", 16) == _ELF_RELOCATABLE:
        return "it is an object file that was not linked to a program"
    return None


def elf_loader(head: bytes) -> str | None:
    """Return the path of the dynamic loader that an ELF program asks for, None without one."""
    try:
        wide = head[4] == 2
        offset = _unpack(head, "Q" if wide else "I", 32 if wide else 28)
        size, count = (_unpack(head, "H", at) for at in ((54, 56) if wide else (42, 44)))
        headers = [offset + index * size for index in range(count)]
        interpreters = [at for at in headers if _unpack(head, "I", at) == _PT_INTERP]
        if not interpreters:
            return None
        at = interpreters[0]
        begin = _unpack(head, "Q" if wide else "I", at + (8 if wide else 4))
    except (struct.error, IndexError):
        return None  # a header that ends early is the system's to refuse
    path, end, _ = head[begin:].partition(b"\0")
    return path.decode("utf-8", "replace") if end and path else None


def _elf_machine(head: bytes) -> str:
    if len(head) < 20:
        return "no architecture (the file is cut off)"
    number = _unpack(head, "H", 18)
    name = _ELF_MACHINES.get(number, f"architecture number {number}")
    return "ppc64le" if name == "ppc64" and head[5] == 1 else name


def _unpack(head: bytes, kind: str, at: int) -> int:
    order = ">" if head[5] == 2 else "<"
    number: int = struct.unpack_from(order + kind, head, at)[0]
    return number

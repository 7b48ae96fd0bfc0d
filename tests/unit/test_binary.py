import gc
import hashlib
import os
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from zeno_fast import binary
from zeno_fast.binary import Executable, check_binary, open_executable, read_wasm
from zeno_fast.errors import PluginLoadError
from zeno_fast.formats import elf_loader
from zeno_fast.manifest import Manifest
from zeno_fast.platforms import Machine

linux_only = pytest.mark.skipif(sys.platform != "linux", reason="needs Linux")
posix_only = pytest.mark.skipif(os.name == "nt", reason="Windows has no execute bit")
WASM = b"\0asm\1\0\0\0"


def elf(machine: int = 62, kind: int = 2, loader: bytes = b"") -> bytes:
    """A 64-bit little-endian ELF header, and a program header where a loader is given."""
    count = 1 if loader else 0
    ident = b"\x7fELF" + bytes([2, 1, 1]) + bytes(9)
    header = ident + struct.pack(
        "<HHIQQQIHHHHHH", kind, machine, 1, 0, 64, 0, 0, 64, 56, count, 0, 0, 0
    )
    if loader:
        header += struct.pack("<IIQQQQQQ", 3, 4, 120, 0, 0, len(loader), len(loader), 1)
    return header + loader + bytes(64)


@pytest.fixture
def plugin(tmp_path):
    """Write a binary and its manifest, and load that."""

    def plugin(
        name: str,
        data: bytes | str | None,
        *,
        mode: int = 0o755,
        kind: str = "sidecar",
        more: str = "",
    ) -> Manifest:
        if data is not None:
            path = tmp_path / name
            path.write_bytes(data if isinstance(data, bytes) else data.encode())
            path.chmod(mode)
        (tmp_path / "manifest.yaml").write_text(f"name: p\ntype: {kind}\nbinary: {name}\n{more}")
        return Manifest.load(tmp_path)

    return plugin


def run(executable: Executable) -> str:
    done = subprocess.run(
        executable.argv, pass_fds=executable.pass_fds, capture_output=True, timeout=30, check=True
    )
    return done.stdout.decode()


def digest_line(data: bytes | str) -> str:
    raw = data if isinstance(data, bytes) else data.encode()
    return f"sha256: {hashlib.sha256(raw).hexdigest()}\n"


@pytest.fixture(autouse=True)
def _no_descriptor_is_left():
    if sys.platform != "linux":
        yield
        return
    before = set(os.listdir("/proc/self/fd"))
    yield
    gc.collect()
    assert set(os.listdir("/proc/self/fd")) <= before


def test_a_script_is_run_by_the_interpreter_that_its_ending_names(plugin):
    manifest = plugin(
        "worker.py",
        "import sys; print(sys.argv[1:], sys.stdout.write_through)",
        mode=0o644,
        more="sidecar: {args: [--a, 'b c']}\n",
    )
    with open_executable(manifest) as executable:
        assert executable.argv == [
            sys.executable, "-u", str(manifest.folder / "worker.py"), "--a", "b c",
        ]  # fmt: skip
        assert executable.pass_fds == ()
        assert run(executable) == "['--a', 'b c'] True\n"


@posix_only
def test_a_script_with_a_shebang_runs_as_it_is(plugin):
    with open_executable(plugin("worker", "#!/bin/sh\necho hello\n")) as executable:
        assert len(executable.argv) == 1
        assert run(executable) == "hello\n"


@linux_only
def test_a_program_with_exe_runs_on_linux(plugin):
    program = Path(shutil.which("true") or "/bin/true").read_bytes()
    with open_executable(plugin("worker.exe", program)) as executable:
        assert run(executable) == ""


SCRIPTS = [
    ("worker.py", "print('hello')", None),
    ("worker.sh", "echo hello", "sh"),
    ("worker.js", "console.log('hello'); require('fs')", "node"),
    ("worker.mjs", "import fs from 'fs'; console.log(fs ? 'hello' : '')", "node"),
    ("worker.php", "<?php echo 'hello', \"\\n\";", "php"),
    ("worker.pl", 'print "hello\\n";', "perl"),
    ("worker.rb", "puts 'hello'", "ruby"),
    ("worker.lua", "print('hello')", "lua"),
    ("worker", "#!/bin/sh\necho hello\n", "sh"),
]


@linux_only
@pytest.mark.parametrize("digest", [False, True], ids=["plain", "sha256"])
@pytest.mark.parametrize(("name", "source", "needs"), SCRIPTS, ids=[case[0] for case in SCRIPTS])
def test_every_kind_of_script_runs_with_and_without_a_digest(plugin, name, source, needs, digest):
    if needs and shutil.which(needs) is None:
        pytest.skip(f"needs {needs}: see apt or npm for it")
    manifest = plugin(name, source, more=digest_line(source) if digest else "")
    with open_executable(manifest) as executable:
        assert bool(executable.pass_fds) is digest
        assert run(executable).strip() == "hello"


@linux_only
def test_R4_the_bytes_that_were_checked_are_the_bytes_that_run(plugin, tmp_path):
    source = "#!/bin/sh\necho checked\n"
    manifest = plugin("worker", source, more=digest_line(source))
    with open_executable(manifest) as executable:
        (tmp_path / "worker").write_text("#!/bin/sh\necho replaced\n")
        assert run(executable) == "checked\n"
        (tmp_path / "worker").unlink()
        assert run(executable) == "checked\n"  # as often as the supervisor wants


@linux_only
def test_R4_nobody_can_write_to_the_checked_copy(plugin):
    source = "#!/bin/sh\necho checked\n"
    with open_executable(plugin("worker", source, more=digest_line(source))) as executable:
        (descriptor,) = executable.pass_fds
        with pytest.raises(PermissionError):
            os.pwrite(descriptor, b"x", 0)
        with pytest.raises(PermissionError):
            os.ftruncate(descriptor, 0)
        with (
            open(f"/proc/self/fd/{descriptor}", "r+b", buffering=0) as again,
            pytest.raises(PermissionError),
        ):
            again.write(b"x")


@linux_only
def test_R4_a_native_program_runs_from_its_checked_copy(plugin):
    program = Path(shutil.which("true") or "/bin/true").read_bytes()
    with open_executable(plugin("worker", program, more=digest_line(program))) as executable:
        assert executable.argv[0].startswith("/proc/self/fd/")
        assert min(executable.pass_fds) > 2
        assert run(executable) == ""


@posix_only
def test_R4_without_a_file_in_memory_a_private_copy_runs_and_is_deleted(
    plugin, monkeypatch, tmp_path
):
    monkeypatch.setattr(binary, "_sealed_copy", lambda stream, name: None)
    source = "#!/bin/sh\necho checked\n"
    executable = open_executable(plugin("worker", source, more=digest_line(source)))
    copy = Path(executable.argv[0])
    assert copy.parent.stat().st_mode & 0o777 == 0o700
    (tmp_path / "worker").write_text("#!/bin/sh\necho replaced\n")
    assert run(executable) == "checked\n"
    executable.close()
    executable.close()
    assert executable.closed
    assert not copy.parent.exists()


@pytest.mark.parametrize("in_memory", [True, False])
def test_R4_another_digest_is_refused_and_nothing_is_left(plugin, monkeypatch, tmp_path, in_memory):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    if not in_memory:
        monkeypatch.setattr(binary, "_sealed_copy", lambda stream, name: None)
    manifest = plugin("worker.py", "print(1)", more=digest_line("print(2)"))
    with pytest.raises(PluginLoadError, match=r"its SHA-256 is .* the manifest says"):
        open_executable(manifest)
    assert list((tmp_path / "temporary").iterdir()) == []


def test_an_executable_that_is_not_closed_warns(plugin):
    executable = open_executable(plugin("worker.py", "1", more=digest_line("1")))
    with pytest.warns(ResourceWarning, match="unclosed"):
        del executable


@posix_only
@pytest.mark.parametrize(
    ("name", "data", "words"),
    [
        ("worker", None, "no such file; was the plugin built?"),
        ("bin/worker", None, "there is no folder"),
        ("worker", b"", "the file is empty"),
        ("worker", b"hello", "neither a program nor a script"),
        ("worker", b"#!\necho", "names no interpreter"),
        ("worker", b"#!/no/such/shell\n", "interpreter /no/such/shell does not exist"),
        ("worker", b"#!/usr/bin/env no-such-php\n", "`no-such-php` is not installed"),
        ("worker", b"#!/usr/bin/env -S no-such-php -x\n", "`no-such-php` is not installed"),
        ("worker", b"#!/bin/sh\r\necho\r\n", "CR LF"),
        ("worker", WASM, "did you mean `type: wasm`?"),
        ("worker.exe", b"MZ\x90\0" + bytes(64), "a Windows program"),
        ("worker", b"\xcf\xfa\xed\xfe" + bytes(64), "a macOS program"),
        ("worker.zip", b"PK\3\4" + bytes(64), "a ZIP archive"),
    ],
)
def test_A14_what_cannot_start_says_why(plugin, name, data, words):
    if sys.platform == "darwin" and "macOS" in words:
        pytest.skip("such a program is good here")
    manifest = plugin(name, data)
    with pytest.raises(PluginLoadError) as caught:
        open_executable(manifest)
    assert words in str(caught.value)
    assert str(manifest.binary_path) in str(caught.value)
    assert caught.value.plugin == "p"


@linux_only
@pytest.mark.parametrize(
    ("data", "words"),
    [
        (elf(machine=183), "a Linux program for arm64"),
        (elf(machine=243), "a Linux program for riscv64"),
        (elf(machine=9999), "architecture number 9999"),
        (b"\x7fELF", "cut off"),
        (elf(kind=1), "object file"),
        (elf(loader=b"/lib/ld-of-nowhere.so.1\0"), "its loader /lib/ld-of-nowhere.so.1"),
    ],
)
def test_A14_a_program_of_another_machine_is_named(plugin, monkeypatch, data, words):
    monkeypatch.setattr(binary, "this_machine", lambda: Machine("linux", "x86_64", "gnu"))
    with pytest.raises(PluginLoadError, match=words):
        open_executable(plugin("worker", data))


@linux_only
def test_the_loader_of_a_real_program_is_found():
    head = Path(sys.executable).resolve().read_bytes()[: 1 << 16]
    loader = elf_loader(head)
    assert loader is None or Path(loader).exists()
    assert elf_loader(elf()) is None
    for end in range(4, 130):
        elf_loader(elf(loader=b"/lib/x\0")[:end])  # a cut header is no exception


@posix_only
def test_A14_a_binary_without_the_execute_bit_shows_its_mode(plugin):
    manifest = plugin("worker", "#!/bin/sh\n", mode=0o644)
    with pytest.raises(PluginLoadError, match=r"mode 0644.*chmod \+x"):
        open_executable(manifest)


def test_A14_a_directory_as_binary(plugin, tmp_path):
    (tmp_path / "worker").mkdir()
    for kind in ("sidecar", "wasm"):
        with pytest.raises(PluginLoadError, match="a directory"):
            check_binary(plugin("worker", None, kind=kind))


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_A14_a_named_pipe_as_binary_is_not_waited_for(plugin, tmp_path):
    os.mkfifo(tmp_path / "worker")
    with pytest.raises(PluginLoadError, match="not a regular file"):
        open_executable(plugin("worker", None))


def test_A14_a_script_whose_interpreter_is_not_installed(plugin, monkeypatch):
    monkeypatch.setenv("PATH", "")
    with pytest.raises(PluginLoadError, match="`lua` is not installed"):
        open_executable(plugin("worker.lua", "print(1)"))


@posix_only
def test_a_missing_exe_hints_at_the_file_without_and_the_reverse(plugin, tmp_path):
    (tmp_path / "one").write_text("x")
    with pytest.raises(PluginLoadError, match="there is `one`"):
        open_executable(plugin("one.exe", None))
    (tmp_path / "two.exe").write_text("x")
    with pytest.raises(PluginLoadError, match=r"there is `two\.exe`"):
        open_executable(plugin("two", None))


@posix_only
def test_a_binary_that_became_a_link_after_the_manifest_was_read_is_refused(plugin, tmp_path):
    manifest = plugin("worker", "#!/bin/sh\n")
    (tmp_path / "worker").unlink()
    (tmp_path / "worker").symlink_to("/bin/sh")
    with pytest.raises(PluginLoadError, match="became a symbolic link"):
        open_executable(manifest)


def test_a_wasm_module_is_read_and_its_digest_checked(plugin):
    module = WASM + b"rest"
    assert read_wasm(plugin("p.wasm", module, kind="wasm", mode=0o644)) == module
    assert read_wasm(plugin("p.wasm", module, kind="wasm", more=digest_line(module))) == module
    with pytest.raises(PluginLoadError, match="its SHA-256 is"):
        read_wasm(plugin("p.wasm", module, kind="wasm", more=digest_line(b"other")))


@pytest.mark.parametrize("name", ["p.wat", "P.WAT"])
@pytest.mark.parametrize(
    "data", [b"(module)", b"\n (; no name ;) (module)", b";; fields\n(memory 1)"]
)
def test_text_is_read_as_it_is_from_a_file_that_is_called_so(plugin, name, data):
    assert read_wasm(plugin(name, data, kind="wasm", more=digest_line(data))) == data


def test_a_module_may_be_in_a_file_that_is_called_text(plugin):
    assert read_wasm(plugin("p.wat", WASM, kind="wasm")) == WASM


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"hello world, this is text", "it begins with b'hello world, thi'"),
        (b"\0asm\x0d\0\1\0", "a WASM component"),
        (elf(), "add `type: sidecar`"),
    ],
)
def test_what_is_neither_text_nor_a_module_is_refused_whatever_it_is_called(plugin, data, words):
    with pytest.raises(PluginLoadError) as caught:
        check_binary(plugin("p.wat", data, kind="wasm"))
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (None, "no such file"),
        (b"", "empty"),
        (b"hello world, this is text", "it begins with b'hello world, thi'"),
        (b"\0asm", "WASM module of version 0"),
        (b"\0asm\x0d\0\1\0", "a WASM component"),
        (b"(module)", "let its name end in .wat"),
        (elf(), "add `type: sidecar`"),
        (b"MZ\x90\0", "a Windows program; to run it as a program, add `type: sidecar`"),
        (b"#!/bin/sh\n", "a script; to run it as a program, add `type: sidecar`"),
    ],
)
def test_F9_what_is_no_wasm_module_is_refused(plugin, data, words):
    with pytest.raises(PluginLoadError) as caught:
        check_binary(plugin("p.wasm", data, kind="wasm"))
    assert words in str(caught.value)


@pytest.mark.parametrize("name", ["p.py", "p.js", "p.PHP"])
def test_a_script_is_known_by_its_name_where_a_wasm_module_should_be(plugin, name):
    with pytest.raises(PluginLoadError, match=r"a script, by its name; .* add `type: sidecar`"):
        check_binary(plugin(name, "print(1)", kind="wasm"))


@pytest.mark.parametrize("name", ["worker", "bin/worker"])
def test_a_missing_binary_is_built_with_what_the_manifest_says(plugin, name):
    manifest = plugin(name, None, more="# build: make worker\n")
    with pytest.raises(PluginLoadError, match=r"no such file; build it with: make worker$"):
        check_binary(manifest)


def test_a_manifest_that_says_nothing_to_build_gives_no_command(plugin):
    manifest = plugin("worker", None, more="# build: nothing to build\n")
    with pytest.raises(PluginLoadError, match=r"was the plugin built\?$"):
        check_binary(manifest)


def test_check_binary_leaves_nothing_open(plugin):
    check_binary(plugin("worker.py", "1", more=digest_line("1")))
    check_binary(plugin("p.wasm", WASM, kind="wasm"))

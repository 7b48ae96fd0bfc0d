"""Compiled modules on disk: damaged, foreign, within reach of others, or with no place for them."""

from __future__ import annotations

import errno
import hashlib
import logging
import os
import pwd
import random
import re
import stat
import subprocess
import sys
import threading
from collections import Counter
from pathlib import Path

import pytest
import wasmtime
from fault.wasm_guests import in_threads
from wasm.conftest import answering

import zeno_fast
from zeno_fast.wasm import cache

pytestmark = pytest.mark.skipif(
    sys.platform in ("win32", "darwin"), reason="the cache is looked for where XDG says"
)
AS_ROOT = pytest.mark.skipif(
    hasattr(os, "geteuid") and os.geteuid() != 0, reason="only root can give a file away"
)
DIGEST = 32  # bytes at the beginning of a file
SAID = "compiled anew each time"


def wat(number: int) -> str:
    """Write a module whose answer tells it from the others."""
    return answering(f'{{"success":true,"data":{number}}}')


def digested(file: Path, code: bytes) -> bytes:
    """Return a whole file for this name."""
    return hashlib.sha256(bytes.fromhex(file.name) + code).digest() + code


class Watched:
    """Counts how modules are come by."""

    def __init__(self, monkeypatch):
        counts = self.counts = Counter()
        real = wasmtime.Module

        class Module(real):
            def __init__(self, engine, code):
                super().__init__(engine, code)
                counts["compiled"] += 1

            @classmethod
            def deserialize(cls, engine, code):
                found = real.deserialize(engine, code)
                counts["loaded"] += 1
                return found

        monkeypatch.setattr(wasmtime, "Module", Module)

    def take(self) -> dict[str, int]:
        """Return the counts since the last time."""
        counts = dict(self.counts)
        self.counts.clear()
        return counts


COMPILED, LOADED = {"compiled": 1}, {"loaded": 1}


@pytest.fixture
def home(tmp_path, monkeypatch):
    """The user's folder for caches, which does not exist yet."""
    home = tmp_path / "caches"
    monkeypatch.setenv("XDG_CACHE_HOME", str(home))
    return home


@pytest.fixture
def watched(monkeypatch):
    return Watched(monkeypatch)


@pytest.fixture
def answer(home, watched, manager, load_wasm):
    """Load the module of a number, call it, forget it; return its answer and how it came about."""

    def answer(number: int = 1, **options: object):
        watched.take()
        name = f"cached{number}"
        load_wasm(wat(number), name=name, slots=(name,), **options)
        try:
            return manager.call(name), watched.take()
        finally:
            manager.unload_plugin(name)

    return answer


def folder_of(home: Path) -> Path:
    return home / "zeno_fast" / "wasm"


def files(home: Path) -> list[Path]:
    return sorted(folder_of(home).iterdir())


def only_file(home: Path) -> Path:
    (file,) = files(home)
    return file


def mode(path: Path) -> int:
    return stat.S_IMODE(path.lstat().st_mode)


def records(caplog, says: str) -> list[logging.LogRecord]:
    return [record for record in caplog.records if says in record.getMessage()]


# -- what is whole is used --------------------------------------------------------------------


def test_f7_a_module_is_compiled_once_and_loaded_from_then_on(home, answer):
    assert answer() == (1, COMPILED)
    assert [answer() for _ in range(3)] == [(1, LOADED)] * 3
    assert answer(2) == (2, COMPILED)
    assert answer(1) == (1, LOADED)
    assert len(files(home)) == 2


def test_f7_another_process_loads_what_this_one_compiled(home, answer, run_python):
    answer()
    before = only_file(home).read_bytes()
    done = run_python(f"""
        import wasmtime
        real = wasmtime.Module
        class Module(real):
            def __init__(self, engine, code):
                raise AssertionError("compiled anew")
        wasmtime.Module = Module
        from zeno_fast import PluginManager
        with PluginManager() as manager:
            manager.load_plugin({str(home.parent / "cached1")!r})
            print(manager.call("cached1"))
    """)
    assert (done.stdout, done.returncode) == ("1\n", 0), done.stderr
    assert only_file(home).read_bytes() == before


@pytest.fixture
def under(request):
    """Make files under this umask."""
    before = os.umask(request.param)
    yield
    os.umask(before)


@pytest.mark.parametrize("under", [0o077, 0o022, 0o002, 0], ids=oct, indirect=True)
def test_f7_modules_are_kept_whatever_the_umask_is(home, under, answer):
    assert [answer(), answer()] == [(1, COMPILED), (1, LOADED)]
    assert mode(folder_of(home)) == 0o700
    assert mode(only_file(home)) == 0o600


@pytest.mark.parametrize("under", [0o077, 0o022, 0o002, 0], ids=oct, indirect=True)
def test_f7_every_folder_that_is_made_is_for_the_user_alone(home, under, answer):
    answer()
    made = [home, folder_of(home).parent, folder_of(home)]
    assert [oct(mode(path)) for path in made] == [oct(0o700)] * 3


@pytest.mark.parametrize(
    "options",
    [
        {"fuel": 1_000_000},
        {"stack": "256KiB"},
        {"fresh": True},
        {"fresh": True, "table": 2_000_000},
    ],
    ids=str,
)
def test_f7_what_other_settings_compile_to_is_another_file(home, answer, options):
    # A table beyond what is pooled has fresh instances made the usual way, by the usual engine.
    other = LOADED if "table" in options else COMPILED
    assert answer() == (1, COMPILED)
    assert answer(**options) == (1, other)
    assert answer() == (1, LOADED)
    assert answer(**options) == (1, LOADED)
    assert len(files(home)) == (1 if "table" in options else 2)


def test_f7_limits_that_do_not_change_the_code_share_one_file(home, answer):
    assert answer() == (1, COMPILED)
    assert answer(memory="1MiB", table=10, instances=1, timeout=5.0) == (1, LOADED)


def test_f7_another_version_of_the_library_has_files_of_its_own(home, answer, monkeypatch):
    answer()
    with monkeypatch.context() as patch:
        patch.setattr(cache, "version", lambda name: f"{name} 0.0.1")
        assert answer() == (1, COMPILED)
        assert answer() == (1, LOADED)
    assert answer() == (1, LOADED)
    assert len(files(home)) == 2


# -- damage -----------------------------------------------------------------------------------


def test_f7_not_one_changed_bit_is_run(home, answer, caplog):
    answer()
    file = only_file(home)
    whole = file.read_bytes()
    chosen = random.Random(7)
    bits = [8 * byte + chosen.randrange(8) for byte in range(0, DIGEST, 4)]
    bits += [chosen.randrange(8 * len(whole)) for _ in range(40)]
    for count, bit in enumerate(bits, 1):
        damaged = bytearray(whole)
        damaged[bit // 8] ^= 1 << bit % 8
        file.write_bytes(damaged)
        assert answer() == (1, COMPILED), bit
        assert len(records(caplog, f"{file} is damaged")) == count
        assert answer() == (1, LOADED)  # it was mended
        assert only_file(home) == file
    assert {record.levelno for record in records(caplog, "is damaged")} == {logging.WARNING}


@pytest.mark.parametrize(
    "damage",
    [
        lambda whole: b"",
        lambda whole: whole[:1],
        lambda whole: whole[: DIGEST - 1],
        lambda whole: whole[:DIGEST],
        lambda whole: whole[: DIGEST + 1],
        lambda whole: whole[: len(whole) // 2],
        lambda whole: whole[:-1],
        lambda whole: whole + b"\0",
        lambda whole: b"\0" * len(whole),
        lambda whole: b"\xff" * 10_000,
        lambda whole: random.Random(1).randbytes(len(whole)),
        lambda whole: whole[DIGEST:],
        lambda whole: whole[:DIGEST] + random.Random(2).randbytes(len(whole) - DIGEST),
        # The digest is of more than the code: this one would do for any name.
        lambda whole: hashlib.sha256(whole[DIGEST:]).digest() + whole[DIGEST:],
    ],
    ids=[
        "empty", "1 byte", "31 bytes", "digest alone", "33 bytes", "half", "1 byte short",
        "1 byte more", "zeros", "ones", "garbage", "no digest", "digest of other content",
        "digest of the code alone",
    ],
)  # fmt: skip
def test_f7_a_damaged_file_is_compiled_anew_and_mended(home, answer, caplog, damage):
    answer()
    file = only_file(home)
    file.write_bytes(damage(file.read_bytes()))
    assert answer() == (1, COMPILED)
    (record,) = records(caplog, f"{file} is damaged")
    assert record.levelno == logging.WARNING
    assert answer() == (1, LOADED)


def test_f7_the_file_of_another_module_is_not_run_under_this_name(home, answer, caplog):
    answer(1)
    first = only_file(home)
    answer(2)
    (second,) = set(files(home)) - {first}
    first.write_bytes(second.read_bytes())
    assert answer(1) == (1, COMPILED)
    assert len(records(caplog, f"{first} is damaged")) == 1
    assert (answer(1), answer(2)) == ((1, LOADED), (2, LOADED))


def foreign_code(how: str) -> bytes:
    """Return what an engine cannot run that was made as zeno_fast makes them."""
    code = bytes(wasmtime.wat2wasm(wat(1)))
    config = wasmtime.Config()
    config.max_wasm_stack = 512 << 10
    config.epoch_interruption = how != "no epochs"
    config.consume_fuel = how == "fuel"
    found = bytes(wasmtime.Module(wasmtime.Engine(config), code).serialize())
    if how == "architecture":
        found = found.replace(b"x86_64-", b"mips64-", 1).replace(b"aarch64-", b"riscv64-", 1)
    elif how == "processor":  # one that has a feature that this one lacks
        found, count = re.subn(rb"(has_\w+\x02)\0", rb"\1\1", found)
        if not count:
            pytest.skip("this processor has every feature that the library knows of")
    elif how == "no code":
        found = b"\x7fELF" + found[4:1000]
    elif how == "text":
        found = b"whatever"
    elif how == "module":
        found = code
    elif how == "nothing":
        found = b""
    return found


@pytest.mark.parametrize(
    "how",
    ["no epochs", "fuel", "architecture", "processor", "no code", "text", "module", "nothing"],
)
def test_f7_code_for_another_machine_is_refused_and_compiled_anew(home, answer, caplog, how):
    caplog.set_level(logging.INFO, "zeno_fast.wasm")
    answer()
    file = only_file(home)
    file.write_bytes(digested(file, foreign_code(how)))
    assert answer() == (1, COMPILED)
    (record,) = records(caplog, f"{file} is not for this machine")
    assert record.levelno == logging.INFO
    assert answer() == (1, LOADED)
    assert not records(caplog, "is damaged")


def test_f7_the_digest_is_what_these_tests_take_it_for(home, answer):
    answer()
    file = only_file(home)
    assert digested(file, file.read_bytes()[DIGEST:]) == file.read_bytes()


# -- others -----------------------------------------------------------------------------------


@AS_ROOT
def test_f7_another_users_file_is_not_used_but_replaced(home, answer, caplog):
    answer()
    file = only_file(home)
    os.chown(file, 12345, 12345)
    assert answer() == (1, COMPILED)
    assert len(records(caplog, f"{file} belongs to another user")) == 1
    assert file.stat().st_uid == os.geteuid()
    assert answer() == (1, LOADED)


def facts(home: Path) -> dict[Path, tuple[int, ...]]:
    """Return what must not change of all below a folder; that it was looked at does not count."""
    return {
        path: (found.st_ino, found.st_mode, found.st_nlink, found.st_size, found.st_mtime_ns)
        for path in home.rglob("*")
        for found in [path.lstat()]
    }


def refused(home, answer, caplog, says):
    """Fail unless modules are compiled each time, which is said once."""
    caplog.set_level(logging.INFO, "zeno_fast.wasm")
    before = facts(home)
    assert [answer() for _ in range(3)] == [(1, COMPILED)] * 3
    (record,) = records(caplog, SAID)
    assert record.levelno == logging.INFO
    assert says in record.getMessage()
    # Nothing in there was touched.
    assert facts(home) == before


@AS_ROOT
@pytest.mark.parametrize("which", ["wasm", "zeno_fast"])
def test_f7_another_users_folder_is_not_used(home, answer, caplog, which):
    answer()
    folder = folder_of(home) if which == "wasm" else folder_of(home).parent
    os.chown(folder, 12345, 12345)
    refused(home, answer, caplog, f"{folder} belongs to another user")


@pytest.mark.parametrize("bits", [0o777, 0o775, 0o757, 0o770, 0o720, 0o702])
@pytest.mark.parametrize("which", ["wasm", "zeno_fast", "base"])
def test_f7_a_folder_that_others_can_write_to_is_not_used(home, answer, caplog, which, bits):
    answer()
    folder = {"wasm": folder_of(home), "zeno_fast": folder_of(home).parent, "base": home}[which]
    folder.chmod(bits)
    refused(home, answer, caplog, f"{folder} can be written to by others")


def test_f7_the_sticky_bit_does_not_help_our_own_folders(home, answer, caplog):
    answer()
    folder_of(home).chmod(0o1777)
    refused(home, answer, caplog, f"{folder_of(home)} can be written to by others")


def test_f7_a_base_for_all_with_the_sticky_bit_will_do(home, answer):
    home.mkdir()
    home.chmod(0o1777)
    assert [answer(), answer()] == [(1, COMPILED), (1, LOADED)]
    assert mode(folder_of(home)) == 0o700


@pytest.mark.parametrize("bits", [0o666, 0o620, 0o602])
def test_f7_a_file_that_others_can_write_to_is_not_used(home, answer, bits):
    answer()
    folder_of(home).chmod(0o755)  # others get there
    file = only_file(home)
    file.chmod(bits)
    assert answer() == (1, COMPILED)
    assert mode(file) == 0o600
    assert answer() == (1, LOADED)


def test_f7_a_symbolic_link_in_place_of_a_file_is_not_followed(home, answer, tmp_path):
    answer()
    file = only_file(home)
    target = tmp_path / "target"
    file.rename(target)
    whole, found = target.read_bytes(), target.stat()
    for _ in range(2):
        file.symlink_to(target)
        assert answer() == (1, COMPILED)
        assert not file.is_symlink()
        assert answer() == (1, LOADED)
        assert (target.read_bytes(), target.stat().st_mtime_ns) == (whole, found.st_mtime_ns)
        file.unlink()


@pytest.mark.parametrize("which", ["wasm", "zeno_fast"])
def test_f7_a_symbolic_link_in_place_of_a_folder_is_not_followed(
    home, answer, caplog, which, tmp_path
):
    folder = folder_of(home) if which == "wasm" else folder_of(home).parent
    folder.parent.mkdir(parents=True, mode=0o700)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir(mode=0o777)
    folder.symlink_to(elsewhere)
    caplog.set_level(logging.INFO, "zeno_fast.wasm")
    assert [answer() for _ in range(2)] == [(1, COMPILED)] * 2
    assert len(records(caplog, SAID)) == 1
    assert not [path for path in elsewhere.rglob("*") if path.is_file()]


def test_f7_a_cache_that_the_user_keeps_on_another_disk_is_used(home, answer, tmp_path):
    # ~/.cache itself is often a link; where it leads to is what counts.
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir(mode=0o700)
    home.symlink_to(elsewhere)
    assert [answer(), answer()] == [(1, COMPILED), (1, LOADED)]


def test_f7_a_folder_in_place_of_a_file_keeps_no_plugin_from_loading(home, answer):
    answer()
    file = only_file(home)
    file.unlink()
    file.mkdir()
    assert [answer() for _ in range(2)] == [(1, COMPILED)] * 2
    assert file.is_dir()
    assert files(home) == [file]


def test_f7_a_pipe_in_place_of_a_file_is_not_waited_for(home, answer):
    answer()
    file = only_file(home)
    file.unlink()
    os.mkfifo(file)

    released = threading.Event()

    def let_go():
        released.set()
        os.close(os.open(file, os.O_WRONLY | os.O_NONBLOCK))

    timer = threading.Timer(5.0, let_go)
    timer.start()
    try:
        assert answer() == (1, COMPILED)
    finally:
        timer.cancel()
        timer.join()
    assert not released.is_set()


# -- no place ---------------------------------------------------------------------------------


@pytest.mark.parametrize("which", ["base", "zeno_fast", "wasm"])
def test_f7_a_file_in_place_of_the_folder_leaves_modules_to_be_compiled(
    home, answer, caplog, which
):
    place = {"wasm": folder_of(home), "zeno_fast": folder_of(home).parent, "base": home}[which]
    place.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    place.touch()
    refused(home, answer, caplog, "")
    assert place.is_file()


def test_f7_a_folder_that_cannot_be_written_to_keeps_what_is_in_it_of_use(home, answer, caplog):
    if os.geteuid() == 0:
        pytest.skip("root may write to any folder")
    answer()
    folder_of(home).chmod(0o500)
    try:
        assert answer() == (1, LOADED)
        assert [answer(2) for _ in range(2)] == [(2, COMPILED)] * 2
        assert records(caplog, "was not kept")
    finally:
        folder_of(home).chmod(0o700)


def test_f7_without_a_home_modules_are_compiled_each_time(home, answer, caplog, monkeypatch):
    def unknown(uid):
        raise KeyError(uid)

    monkeypatch.setattr(pwd, "getpwuid", unknown)
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.delenv("HOME", raising=False)
    caplog.set_level(logging.INFO, "zeno_fast.wasm")
    monkeypatch.setattr(cache, "_refused", set())  # its text is the same in every test
    assert [answer() for _ in range(3)] == [(1, COMPILED)] * 3
    assert len(records(caplog, SAID)) == 1


@pytest.mark.parametrize("named", ["", "relative/folder", None])
def test_f7_a_base_that_is_not_absolute_is_the_homes(home, answer, monkeypatch, tmp_path, named):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    if named is None:
        monkeypatch.delenv("XDG_CACHE_HOME")
    else:
        monkeypatch.setenv("XDG_CACHE_HOME", named)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "home").mkdir(mode=0o700)
    assert [answer(), answer()] == [(1, COMPILED), (1, LOADED)]
    assert only_file(tmp_path / "home" / ".cache").is_file()
    assert not (tmp_path / "relative").exists()


def test_f7_a_full_disk_is_no_ones_failure_and_leaves_nothing(home, make_wasm, run_python, way):
    done = run_python(f"""
        import logging, resource
        from zeno_fast import PluginManager
        import zeno_fast.wasm.driver
        logging.basicConfig(format="%(levelname)s %(message)s")
        _, most = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (8192, most))  # a memory's image needs 4096
        for _ in range(2):
            with PluginManager() as manager:
                manager.load_plugin({str(make_wasm(wat(1)))!r})
                print(manager.call("run"))
    """)
    assert (done.stdout, done.returncode) == ("1\n1\n", 0), done.stderr
    assert done.stderr.count("WARNING a compiled WASM module was not kept") == 2
    assert files(home) == []


@pytest.mark.parametrize("function", ["replace", "fdopen"])
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO, errno.EDQUOT, errno.EACCES])
def test_f7_a_file_that_cannot_be_kept_leaves_nothing(
    home, answer, caplog, monkeypatch, function, code
):
    answer(2)
    (other,) = files(home)

    def fail(*arguments, **named):
        raise OSError(code, os.strerror(code))

    with monkeypatch.context() as patch:
        if function == "replace":
            patch.setattr(cache.os, "replace", fail)
        else:
            patch.setattr(cache.tempfile, "mkstemp", fail)
        assert [answer() for _ in range(2)] == [(1, COMPILED)] * 2
    assert len(records(caplog, "was not kept")) == 2
    assert files(home) == [other]
    assert [answer(), answer()] == [(1, COMPILED), (1, LOADED)]


def test_f7_an_interrupt_while_a_file_is_written_leaves_nothing(home, answer, monkeypatch):
    def interrupt(*arguments):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(cache.os, "replace", interrupt)
        with pytest.raises(KeyboardInterrupt):
            answer()
    assert files(home) == []
    assert [answer(), answer()] == [(1, COMPILED), (1, LOADED)]


# -- many at once -----------------------------------------------------------------------------

CHILD = """
import sys
from zeno_fast import PluginManager
import zeno_fast.wasm.driver
print("ready", flush=True)
sys.stdin.readline()
for _ in range(3):
    with PluginManager() as manager:
        manager.load_plugin(sys.argv[1])
        print(manager.call("run"), flush=True)
"""


def test_f7_eight_processes_that_compile_the_same_module_keep_one_whole_file(
    home, make_wasm, tmp_path, way
):
    folder = make_wasm(wat(1))
    environment = {**os.environ, "PYTHONPATH": str(Path(zeno_fast.__file__).parents[1])}
    children = [
        subprocess.Popen(
            [sys.executable, "-c", CHILD, str(folder)],
            cwd=tmp_path,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(8)
    ]
    try:
        for child in children:
            assert child.stdout.readline() == "ready\n"
        for child in children:
            child.stdin.write("\n")
            child.stdin.flush()
        found = [child.communicate(timeout=60) for child in children]
    finally:
        for child in children:
            child.kill()
            child.communicate()
    assert found == [("1\n1\n1\n", "")] * 8
    file = only_file(home)
    assert digested(file, file.read_bytes()[DIGEST:]) == file.read_bytes()


def test_f7_threads_that_keep_the_same_module_at_the_same_moment_leave_one_file(
    home, watched, make_wasm, manager, monkeypatch, way
):
    together = threading.Barrier(8)
    replace = os.replace

    def replace_together(*arguments):
        together.wait(30)
        replace(*arguments)

    folders = [
        make_wasm(wat(1), name=f"hostile{number}", slots=(f"run{number}",)) for number in range(8)
    ]
    with monkeypatch.context() as patch:
        patch.setattr(cache.os, "replace", replace_together)

        def work(number):
            manager.load_plugin(folders[number])
            assert manager.call(f"run{number}") == 1

        in_threads(8, work)
    assert watched.take() == {"compiled": 8}
    file = only_file(home)
    assert digested(file, file.read_bytes()[DIGEST:]) == file.read_bytes()


# -- the bound --------------------------------------------------------------------------------


def aged(file: Path, days: float) -> None:
    then = file.stat().st_mtime - 86400 * days
    os.utime(file, (then, then))


def test_f7_what_was_not_used_for_longest_goes_first(home, answer, monkeypatch):
    known: dict[int, Path] = {}
    for number in range(1, 5):
        answer(number)
        (known[number],) = set(files(home)) - set(known.values())
    for number, days in ((1, 4), (2, 3), (3, 2), (4, 1)):
        aged(known[number], days)
    assert answer(1) == (1, LOADED)  # it is the youngest now
    nbytes = sum(file.stat().st_size for file in known.values())
    monkeypatch.setattr(cache, "MOST_NBYTES", nbytes)
    assert answer(5) == (5, COMPILED)
    assert not known[2].exists()
    assert all(known[number].exists() for number in (1, 3, 4))
    assert len(files(home)) == 4
    assert answer(5) == (5, LOADED)
    assert answer(2) == (2, COMPILED)
    assert not known[3].exists()


def test_f7_a_temporary_file_that_a_crash_left_goes_by_its_age(home, answer, monkeypatch):
    answer(1)
    left = folder_of(home) / "new-left"
    left.write_bytes(bytes(1000))
    aged(left, 1)
    size = 2 * sum(file.stat().st_size for file in files(home))
    monkeypatch.setattr(cache, "MOST_NBYTES", size - 1100)
    answer(2)
    assert not left.exists()
    assert len(files(home)) == 2


def test_f7_a_module_larger_than_the_bound_is_not_kept(home, answer, monkeypatch):
    monkeypatch.setattr(cache, "MOST_NBYTES", 10)
    assert [answer() for _ in range(2)] == [(1, COMPILED)] * 2
    assert files(home) == []


def test_f7_a_folder_that_another_process_tidies_meanwhile_is_no_failure(
    home, answer, monkeypatch, caplog
):
    answer(1)
    answer(2)
    lstat = Path.lstat

    def gone(path):
        if len(path.name) == 64 and path.parent == folder_of(home):
            path.unlink(missing_ok=True)
        return lstat(path)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "lstat", gone)
        assert answer(3) == (3, COMPILED)
    assert files(home) == []
    assert not records(caplog, "was not kept")

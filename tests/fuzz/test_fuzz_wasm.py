"""Loading and calling WASM modules that are nearly right is an answer or an error; B13 in small."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from fuzz import fuzz_wasm
from fuzz.fuzz_wasm import FuzzFailure, check, fuzz
from fuzz.modules import SEEDS, make_case

SECONDS = 3.0
SEED = 20_240_101


@pytest.mark.parametrize("way", ["direct", "public"])
def test_b13_f5_no_module_breaks_the_host(way: str, tmp_path: Path, no_leaks: None) -> None:
    # In a process of its own, which may be ended by what a module does to it, and with a cache of
    # its own for what is compiled.
    program = Path(fuzz_wasm.__file__)
    run = subprocess.run(
        [sys.executable, str(program), "--seconds", str(SECONDS), "--seed", str(SEED),
         "--failures", str(tmp_path / "failures")],
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
            "XDG_CACHE_HOME": str(tmp_path),
            "ZENO_FAST_WASM": way,
        },
        capture_output=True, text=True, timeout=100, check=False,
    )  # fmt: skip
    assert run.returncode == 0, run.stdout + run.stderr
    outcome = run.stdout.splitlines()[-1]
    assert int(outcome.split()[0]) > 100
    for kind in ("refused", "answered", "PluginCrashed", "ProtocolError"):
        assert kind in outcome  # or too little is tried
    assert not list((tmp_path / "failures").iterdir())


def test_a_module_is_made_again_by_its_seed() -> None:
    made = [make_case(7, number) for number in range(50)]
    assert made == [make_case(7, number) for number in range(50)]
    assert len(set(made)) > 40


@pytest.mark.parametrize("name", SEEDS)
def test_what_is_changed_is_right_to_begin_with(name: str, no_leaks: None) -> None:
    import wasmtime

    assert check(bytes(wasmtime.wat2wasm(SEEDS[name]))) == "answered"


def test_an_error_that_is_not_accepted_is_noticed_and_kept_for_a_replay(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    def refuse(*arguments: object, **options: object) -> None:
        raise RuntimeError("an error of the host")

    with monkeypatch.context() as patch:
        patch.setattr(fuzz_wasm, "check", refuse)
        _, failed = fuzz(5.0, SEED, tmp_path, 10)
    kept = sorted(tmp_path.glob("*.wasm"))
    assert failed == len(kept) == 10
    assert f"--replay {kept[0].parent}" in capfd.readouterr().out


def test_a_plugin_that_is_not_served_is_noticed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(fuzz_wasm.Plugin, "call", lambda *arguments, **options: None)
    _, failed = fuzz(5.0, SEED, tmp_path, 3)
    assert failed == 3
    assert FuzzFailure.__name__ in capfd.readouterr().err

"""The guest library for Go: what it does in every language, and what is Go's own."""

from __future__ import annotations

import os
import subprocess
import time
from typing import Any

import numpy as np
import pytest
from guests.build import LIBRARIES, missing_toolchain, search_path
from sidecar.ring_guest import RingGuest, inverted, is_shared, some_bytes

from zeno_fast import PluginManager

ALONE = {"GOTOOLCHAIN": "local", "GOPROXY": "off", "GOFLAGS": "", "CGO_ENABLED": "0"}


class TestGo(RingGuest):
    name = "go-ring"
    in_place = "invert_in_place"

    def test_slots_that_are_not_quick_are_worked_on_at_the_same_time(self, either):
        began = time.monotonic()
        sleeping = [either.submit("go-ring.sleep", {"seconds": 0.5}) for _ in range(8)]
        assert either.call("go-ring.echo", {"value": 1}) == 1
        assert either.call("go-ring.later", {"value": 2}) == 2
        assert time.monotonic() - began < 0.4  # before any of them has ended
        assert [future.result(5) for future in sleeping] == [0.5] * 8
        assert time.monotonic() - began < 2

    def test_answers_of_many_goroutines_stay_whole(self, either):
        texts = [f"{n}," * (n * 997 % 60_000) for n in range(300)]
        futures = [either.submit("go-ring.later", {"value": text}) for text in texts]
        assert [future.result(60) for future in futures] == texts

    @pytest.mark.parametrize("nbytes", [0, 1, 1000, 3_000_000], ids=str)
    def test_bytes_of_calls_at_once_are_not_mixed_up(self, either, nbytes):
        data = [bytes([n]) + some_bytes(nbytes) for n in range(12)]
        futures = [either.submit("go-ring.invert", {"data": sent}) for sent in data]
        answers = [future.result(60) for future in futures]
        assert all(answer == inverted(sent) for answer, sent in zip(answers, data, strict=True))

    def test_an_array_arrives_as_its_bytes(self, either):
        array = np.arange(1000, dtype="<u4").reshape(10, 100)
        answer = either.call("go-ring.invert", {"data": array})
        assert answer == inverted(array.tobytes())
        assert is_shared(answer) == (either.get_plugin("go-ring").status()["transport"] == "shm")

    def test_of_a_buffer_any_part_comes_and_goes(self, ring):
        buffer = ring.buffer(10_000)
        part = memoryview(buffer)[5000:5010]
        answer = invert_in_place(ring, part, begin=3, end=7)
        assert answer == bytes([255]) * 4
        assert np.shares_memory(np.asarray(answer), np.asarray(part)[3:7])
        assert bytes(memoryview(buffer)[4999:5012]) == bytes(4) + bytes([255]) * 4 + bytes(5)
        assert invert_in_place(ring, part, begin=10) == b""

    def test_an_answer_beside_a_buffer_leaves_it_as_it_was(self, ring):
        buffer = ring.buffer(5000)
        memoryview(buffer)[:] = some_bytes(5000)
        assert ring.call("go-ring.invert", {"data": buffer}) == inverted(some_bytes(5000))
        assert memoryview(buffer) == some_bytes(5000)

    def test_buffers_and_bytes_are_told_apart_by_either_transport(self, either):
        buffer = either.buffer(100)
        shares = either.get_plugin("go-ring").status()["transport"] == "shm"
        for data in (bytes(100), buffer, bytes(100)):
            answer = invert_in_place(either, data)
            assert answer == bytes([255]) * 100
            assert is_shared(answer) == shares
        assert bytes(memoryview(buffer)) == bytes([255 if shares else 0]) * 100

    def test_buffers_of_calls_at_once_are_not_mixed_up(self, ring):
        buffers = [ring.buffer(1000 + n) for n in range(100)]
        for n, buffer in enumerate(buffers):
            memoryview(buffer)[:] = bytes([n]) * len(buffer)
        sent = ({"data": buffer} for buffer in reversed(buffers))
        answers = ring.map("go-ring.invert_in_place", sent)
        for n, answer in zip(reversed(range(100)), answers, strict=True):
            assert answer == memoryview(buffers[n]) == bytes([255 - n]) * (1000 + n)

    def test_a_slot_that_it_has_not_is_its_error_over_the_ring(self, manager, folder):
        with (folder / "manifest.yaml").open("a") as manifest:
            manifest.write("slots:\n  - name: go-ring.nowhere\n  - name: go-ring.echo\n")
        manager.load_plugin(folder)
        response = manager.execute_slot("go-ring", "go-ring.nowhere", {})
        assert (response.success, response.error) == (False, "unknown slot go-ring.nowhere")
        assert manager.call("go-ring.echo", {"value": 1}) == 1


def invert_in_place(manager: PluginManager, data: Any, **part: int) -> memoryview:
    return manager.call("go-ring.invert_in_place", {"data": data, **part})


@pytest.fixture(scope="module")
def go() -> dict[str, str]:
    missing = missing_toolchain("go-ring")
    if missing:
        pytest.skip(missing)
    return {**os.environ, **ALONE, "PATH": search_path()}


def run(go: dict[str, str], *command: str) -> None:
    """Run a command in the library's folder, which has to end well."""
    folder = LIBRARIES / "go" / "zeno"
    done = subprocess.run(
        command, cwd=folder, env=go, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_librarys_own_tests_pass(go):
    run(go, "go", "vet", ".")
    run(go, "go", "test", "-count=1", "-timeout=240s", ".")


@pytest.mark.parametrize("system", ["linux/arm64", "linux/386", "darwin/arm64", "windows/amd64"])
def test_the_library_compiles_for_other_systems(go, system):
    goos, _, goarch = system.partition("/")
    run({**go, "GOOS": goos, "GOARCH": goarch}, "go", "build", ".")

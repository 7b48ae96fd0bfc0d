"""What a guest library does in every language: messages and bytes through memory, and lines."""

from __future__ import annotations

import contextlib
import gc
import json
import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from zeno_fast import Manifest, PluginCrashed, PluginManager, SlotError, SlotTimeout
from zeno_fast._shm import Arena, Buffer, Segment
from zeno_fast.sidecar.sharing import BUFFER

RING = 1 << 18  # bytes: the default of `ring_size`
VALUES = [
    None, True, False, 0, -1, 2**53, 1.5, -0.25, "", "text", "Zürich 𝄞", "a\x00b", "\"\\/\b\n",
    "}\n{", [], {}, [1, [2, [3]]], {"a": {"b": [None, {"c": "d"}]}}, {"value": 1, "id": "x"},
]  # fmt: skip


def some_bytes(nbytes: int) -> bytes:
    return (bytes(range(256)) * (nbytes // 256 + 1))[:nbytes]


def is_shared(answer: memoryview) -> bool:
    """Tell whether bytes came through shared memory; those that came in base64 are a bytearray."""
    return not isinstance(answer.obj, bytearray)


def inverted(data: bytes) -> bytes:
    return bytes(data).translate(bytes(255 - byte for byte in range(256)))


def assert_threads_pass_large_messages(manager: PluginManager, guest: str) -> None:
    """Let threads, each a writer that waits for room or a leader, send more than the ring holds."""
    failures: list[BaseException] = []

    def call(number: int) -> None:
        try:
            for turn in range(100):
                text = f"{number}{turn}" * (20, 100_000, 5_000)[turn % 3]
                assert manager.call(f"{guest}.echo", {"value": text}, timeout=10) == text
        except BaseException as error:  # noqa: BLE001 - shown by the test's own thread
            failures.append(error)

    threads = [threading.Thread(target=call, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not failures
    assert not any(thread.is_alive() for thread in threads)


def blocks(pid: int) -> tuple[int, int]:
    """Count the blocks of a host's memory that a process has mapped, and has descriptors of."""
    maps = Path(f"/proc/{pid}/maps").read_text().splitlines()
    opened = list(descriptors(pid))
    return tuple(sum("memfd:zeno_fast" in line for line in lines) for lines in (maps, opened))


def descriptors(pid: int) -> Iterator[str]:
    """Name what a process, which may open and close others meanwhile, has descriptors of."""
    for link in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            yield os.readlink(link)


class Alone:
    """A guest that is spoken to in lines, by a host that would also say what no host says."""

    def __init__(self, slot: str, process: subprocess.Popen[bytes], ours: socket.socket) -> None:
        self.pid = process.pid
        self._slot = slot
        self._process = process
        self._ours = ours

    def give(self, buffer: Buffer) -> None:
        self.send(BUFFER.pack(buffer.id, buffer.nbytes), buffer.fd)

    def send(self, message: bytes, *fds: int) -> None:
        socket.send_fds(self._ours, [message], fds)

    def forget(self, *ids: int) -> None:
        self._write({"type": "forget_buffers", "buffers": ids})

    def inverts(self, *place: Any) -> bool:
        """Tell whether the guest finds the bytes at a place."""
        parameters = {"data": {"$bytes": place}}
        call = {"id": "1", "slot_name": self._slot, "parameters": parameters, "binary": True}
        self._write({"type": "guest_call", **call})
        answer = json.loads(self._process.stdout.readline())
        return answer["success"]

    def _write(self, message: dict[str, Any]) -> None:
        self._process.stdin.write(json.dumps(message).encode() + b"\n")
        self._process.stdin.flush()


class RingGuest:
    """Tests of the guest `name`, which a subclass gives."""

    name: str
    in_place = "invert"  # which slot inverts what lies in a buffer where it is

    @pytest.fixture
    def folder(self, build_guest, tmp_path) -> Path:
        return build_guest(self.name, tmp_path)

    @pytest.fixture
    def ring(self, manager, folder) -> PluginManager:
        manager.load_plugin(folder)
        assert manager.get_plugin(self.name).status()["transport"] == "shm"
        return manager

    @pytest.fixture
    def lines(self, manager, folder) -> PluginManager:
        manifest = folder / "manifest.yaml"
        manifest.write_text(manifest.read_text() + "  transport: stdio\n")
        manager.load_plugin(folder)
        assert manager.get_plugin(self.name).status()["transport"] == "stdio"
        return manager

    @pytest.fixture(params=["ring", "lines"])
    def either(self, request) -> PluginManager:
        return request.getfixturevalue(request.param)

    def test_every_json_type_comes_back_as_it_was(self, either):
        for value in VALUES:
            assert either.call(f"{self.name}.echo", {"value": value}) == value

    def test_calls_in_a_row_at_once_and_in_a_map_are_answered(self, either):
        for n in range(2000):
            assert either.call(f"{self.name}.echo", {"value": n}) == n
        assert list(either.map(f"{self.name}.echo", ({"value": n} for n in range(2000)))) == [
            *range(2000)
        ]
        futures = [either.submit(f"{self.name}.echo", {"value": "v" * n}) for n in range(500)]
        assert [len(future.result(30)) for future in futures] == [*range(500)]

    def test_a_message_larger_than_the_ring_comes_back_whole(self, either):
        for nbytes in (RING - 60, RING, RING + 1, 4 * RING, 5_000_001):
            text = ("0123456789abcde" * (nbytes // 15 + 1))[:nbytes]  # nothing moves unnoticed
            for _ in range(3):
                assert either.call(f"{self.name}.echo", {"value": text}) == text

    def test_lengths_around_the_ends_of_records_and_of_the_ring_come_back_whole(self, ring):
        for nbytes in [*range(70), *range(RING // 4 - 100, RING // 4 + 100, 7)]:
            text = "x" * nbytes
            assert ring.call(f"{self.name}.echo", {"value": text}) == text

    def test_a_ring_of_the_least_size_carries_messages_of_any(self, manager, folder):
        manifest = folder / "manifest.yaml"
        manifest.write_text(manifest.read_text() + "  ring_size: 4KiB\n")
        manager.load_plugin(folder)
        assert manager.get_plugin(self.name).status()["transport"] == "shm"
        for nbytes in [0, 3000, 4080, 4096, 5000, 100_000, 2_000_000]:
            text = ("0123456789abcde" * (nbytes // 15 + 1))[:nbytes]
            assert manager.call(f"{self.name}.echo", {"value": text}) == text
        texts = [f"{n}" * 1500 for n in range(200)]
        assert list(manager.map(f"{self.name}.echo", ({"value": text} for text in texts))) == texts

    def test_many_large_messages_at_once_pass_in_both_directions(self, ring):
        texts = [f"{n}" * 100_000 for n in range(40)]
        futures = [ring.submit(f"{self.name}.echo", {"value": text}) for text in texts]
        assert [future.result(60) for future in futures] == texts

    def test_bytes_come_back_inverted(self, either):
        shares = either.get_plugin(self.name).status()["transport"] == "shm"
        for nbytes in (0, 1, 2, 3, 63, 64, 65, 4096, 1 << 20, 5_000_001):
            data = some_bytes(nbytes)
            for _ in range(3):
                answer = either.call(f"{self.name}.invert", {"data": data})
                assert answer == inverted(data)
                assert is_shared(answer) == shares

    def test_room_for_bytes_is_used_again_once_nobody_looks_at_them(self, ring):
        data = some_bytes(60 << 20)  # five times as much would not fit
        for _ in range(8):
            answer = ring.call(f"{self.name}.invert", {"data": data})
            assert is_shared(answer) and answer[:4] == inverted(data[:4])
            del answer
        held = [ring.call(f"{self.name}.invert", {"data": bytes([n]) * 5000}) for n in range(200)]
        del held[::2]
        held += [ring.call(f"{self.name}.invert", {"data": bytes([n]) * 3000}) for n in range(200)]
        expected = [bytes([255 - n]) * 5000 for n in range(1, 200, 2)]
        expected += [bytes([255 - n]) * 3000 for n in range(200)]
        assert held == expected
        assert all(map(is_shared, held))

    def test_a_guest_without_room_answers_in_base64(self, manager, folder):
        manifest = folder / "manifest.yaml"
        manifest.write_text(manifest.read_text() + "  arena_size: 1MiB\n")
        manager.load_plugin(folder)
        data = some_bytes(400_000)
        held = [manager.call(f"{self.name}.invert", {"data": data}) for _ in range(5)]
        assert all(answer == inverted(data) for answer in held)
        assert [is_shared(answer) for answer in held] == [True, True, False, False, False]

    def test_what_is_no_bytes_is_the_guests_error(self, ring):
        with pytest.raises(SlotError, match="no bytes"):
            ring.call(f"{self.name}.invert", {"data": 5})
        with pytest.raises(SlotError, match="not today"):
            ring.call(f"{self.name}.fail", {"message": "not today"})
        assert ring.call(f"{self.name}.echo", {"value": 1}) == 1

    def test_a_guest_that_died_is_started_again_with_a_ring(self, ring):
        with pytest.raises(PluginCrashed, match="crashing as it was told"):
            ring.call(f"{self.name}.crash")
        assert ring.call(f"{self.name}.echo", {"value": 2}) == 2
        future = ring.submit(f"{self.name}.sleep", {"seconds": 30})
        time.sleep(0.05)
        os.kill(ring.get_plugin(self.name).status()["pid"], signal.SIGKILL)
        with pytest.raises(PluginCrashed):
            future.result(5)
        data = some_bytes(100_000)
        assert ring.call(f"{self.name}.invert", {"data": data}) == inverted(data)
        assert ring.get_plugin(self.name).status()["transport"] == "shm"

    def test_a_sleeping_guest_and_a_sleeping_host_are_woken(self, ring):
        for pause in (
            0.0,
            0.00002,
            0.0002,
            0.001,
            0.2,
        ):  # around and beyond what either waits awake
            for _ in range(3):
                time.sleep(pause)
                began = time.monotonic()
                assert ring.call(f"{self.name}.sleep", {"seconds": pause}) == pause
                assert time.monotonic() - began < 2

    def test_a_guest_that_waits_for_room_and_for_messages_is_woken(self, ring):
        texts = [f"{n}" * 300_000 for n in range(10)]
        futures = [ring.submit(f"{self.name}.sleep", {"seconds": 0.1})]
        futures += [ring.submit(f"{self.name}.echo", {"value": text}) for text in texts]
        assert [future.result(20) for future in futures] == [0.1, *texts]

    def test_threads_with_messages_above_the_rings_size_are_all_served(self, ring):
        assert_threads_pass_large_messages(ring, self.name)

    def test_a_host_that_waits_for_room_is_woken(self, ring):
        pid = ring.get_plugin(self.name).status()["pid"]
        text = "x" * (4 * RING)
        took = []
        for _ in range(5):
            os.kill(pid, signal.SIGSTOP)  # so that the ring is full before any of it is read
            go_on = threading.Timer(0.05, os.kill, (pid, signal.SIGCONT))
            go_on.start()
            began = time.monotonic()
            assert ring.call(f"{self.name}.echo", {"value": text}, timeout=10) == text
            took.append(time.monotonic() - began)
            go_on.join()
        assert min(took) < 0.2  # less than after what the host looks again by itself

    def test_an_idle_guest_uses_no_processor_time(self, ring):
        pid = ring.get_plugin(self.name).status()["pid"]

        def ticks() -> int:
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            return int(fields[11]) + int(fields[12])

        for _ in range(4):  # it does not wait awake as long each time
            ring.call(f"{self.name}.echo", {"value": 1})
            time.sleep(0.1)
            before = ticks()
            time.sleep(0.5)
            assert ticks() - before <= 1

    def test_a_call_that_timed_out_leaves_the_guest_usable(self, either):
        with pytest.raises(SlotTimeout):
            either.call(f"{self.name}.sleep", {"seconds": 0.3}, timeout=0.05)
        assert either.call(f"{self.name}.echo", {"value": "next"}) == "next"

    def test_a_guest_ends_when_its_host_closes_its_input(self, ring):
        pid = ring.get_plugin(self.name).status()["pid"]
        began = time.monotonic()
        ring.unload_plugin(self.name)
        assert time.monotonic() - began < 1  # it was not killed for its silence
        assert not Path(f"/proc/{pid}").exists()

    @pytest.fixture
    def alone(self, folder) -> Iterator[Alone]:
        segment, arena = Segment(RING, 1 << 20), Arena(1 << 20)
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        offers = {
            "ZENO_SHM": segment.announcement,
            "ZENO_ARENA": arena.announcement,
            "ZENO_BUFFERS": str(theirs.fileno()),
            "ZENO_PLUGIN_NAME": self.name,
        }
        with ours, theirs:
            process = subprocess.Popen(
                [folder / Manifest.load(folder).binary],
                env={**os.environ, **offers},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                pass_fds=(segment.fd, arena.fd, theirs.fileno()),
            )
            with process:
                theirs.close()
                try:
                    yield Alone(f"{self.name}.{self.in_place}", process, ours)
                    process.stdin.close()
                    assert process.wait(10) == 0
                finally:
                    process.kill()
        segment.close_fd()
        arena.close()

    def invert(self, manager: PluginManager, data: Any) -> memoryview:
        return manager.call(f"{self.name}.{self.in_place}", {"data": data})

    def test_a_buffer_goes_to_the_guest_and_back_without_a_copy(self, ring):
        for nbytes in (1, 4096, 5_000_001):
            buffer = ring.buffer(nbytes)
            view = np.frombuffer(buffer, "u1")
            view[:] = sent = np.frombuffer(some_bytes(nbytes), "u1")
            answer = self.invert(ring, buffer)
            assert np.shares_memory(np.asarray(answer), view)
            assert np.array_equal(view, 255 - sent)  # the guest wrote into it
            again = self.invert(ring, answer)
            assert np.shares_memory(np.asarray(again), view)
            assert np.array_equal(view, sent)
        assert self.invert(ring, ring.buffer(0)) == b""

    def test_a_part_of_a_buffer_is_all_that_the_guest_gets(self, ring):
        buffer = ring.buffer(10_000)
        view = np.frombuffer(buffer, "u1")
        for begin, end in [(0, 1), (4090, 4100), (5, 5), (9999, 10_000), (1, 9999)]:
            view[:] = 1
            part = memoryview(buffer)[begin:end]
            answer = np.asarray(self.invert(ring, part))
            assert answer.tolist() == [254] * (end - begin)
            assert np.shares_memory(answer, view) == (end > begin)
            assert np.count_nonzero(view == 254) == end - begin
            assert np.count_nonzero(view == 1) == 10_000 - (end - begin)

    def test_buffers_that_are_gone_are_forgotten(self, ring):
        pid = ring.get_plugin(self.name).status()["pid"]
        before = blocks(pid)
        held = [ring.buffer(10_000) for _ in range(100)]
        for buffer in held:
            assert self.invert(ring, buffer) == b"\xff" * 10_000
        assert blocks(pid) == (before[0] + 100, before[1])
        del buffer, held
        gc.collect()
        for _ in range(100):  # the host says so when it next looks after its plugins
            ring.call(f"{self.name}.echo", {"value": 1})
            if blocks(pid) == before:
                break
            time.sleep(0.05)
        assert blocks(pid) == before

    def test_a_guest_that_is_started_again_gets_the_buffer_again(self, ring):
        buffer = ring.buffer(100_000)
        view = np.frombuffer(buffer, "u1")
        self.invert(ring, buffer)
        future = ring.submit(f"{self.name}.sleep", {"seconds": 30})
        os.kill(ring.get_plugin(self.name).status()["pid"], signal.SIGKILL)
        assert isinstance(future.exception(5), PluginCrashed)
        answer = np.asarray(self.invert(ring, buffer))
        assert np.shares_memory(answer, view)
        assert not view.any()

    def test_places_outside_of_a_buffer_are_the_guests_error(self, alone):
        buffer = Buffer(5000)
        alone.give(buffer)
        most = 2**64 - 1
        for offset, nbytes in [
            (0, 5001), (4999, 2), (5000, 1), (5001, 0), (0, 8192), (1, most), (most, 1), (most, 2),
            (2**63, 2**63), (1, 2**63 - 1), (2**63 - 1, 1), (-1, 1), (0, -1), (0.5, 1),
        ]:  # fmt: skip
            assert not alone.inverts(offset, nbytes, buffer.id)
        assert alone.inverts(5000, 0, buffer.id)
        assert alone.inverts(4999, 1, buffer.id)
        assert bytes(buffer) == bytes(4999) + b"\xff"
        for id in (buffer.id + 1, -1, 0.5):
            assert not alone.inverts(0, 1, id)
        assert alone.inverts(0, 5000, buffer.id)

    def test_a_buffer_that_no_call_referred_to_is_forgotten_as_well(self, alone):
        used, unused, last = Buffer(1), Buffer(1), Buffer(1)
        assert alone.inverts(0, 1)  # it is up now, and has its arenas
        before = blocks(alone.pid)
        for buffer in (used, unused, last):
            alone.give(buffer)
        assert alone.inverts(0, 1, used.id)
        alone.forget(unused.id, used.id)
        assert alone.inverts(0, 1, last.id)
        alone.forget(last.id)
        assert not alone.inverts(0, 1, unused.id)
        assert blocks(alone.pid) == before

    def test_what_is_no_buffer_is_passed_over(self, alone):
        assert alone.inverts(0, 1)
        before = blocks(alone.pid)
        buffer, other = Buffer(100), Buffer(100)
        reader, writer = os.pipe()  # which nobody can map
        alone.send(b"short", buffer.fd)
        alone.send(BUFFER.pack(1 << 40, 100), reader)
        alone.send(BUFFER.pack(1 << 41, 2**64 - 1), buffer.fd)
        alone.send(BUFFER.pack(other.id, 100), other.fd, buffer.fd)  # the second is in the way
        alone.give(buffer)
        began = time.monotonic()
        assert alone.inverts(0, 100, buffer.id)
        assert not alone.inverts(0, 100, 1 << 40)
        assert not alone.inverts(0, 100, 1 << 41)
        assert time.monotonic() - began < 0.9  # nobody waited for any of them
        assert bytes(buffer) == b"\xff" * 100
        assert blocks(alone.pid) == (before[0] + 2, before[1])
        assert os.readlink(f"/proc/self/fd/{reader}") not in descriptors(alone.pid)
        os.close(reader)
        os.close(writer)

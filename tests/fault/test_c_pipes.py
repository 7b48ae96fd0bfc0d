"""C1 to C6: pipes that are full, flooded or closed, whichever way the guest answers."""

from __future__ import annotations

import asyncio
import logging
import time
from concurrent.futures import wait

import pytest
from fault.bounds import MIB, call_each_way, pid_of, watch_memory, within

from zeno_fast import PluginCrashed, PluginUnavailable, SlotError, SlotTimeout

pytestmark = pytest.mark.usefixtures("healthy")
LOGGER = "zeno_fast.plugin.scripted"

STOPS_READING = """
import threading
for request in requests():
    if lifecycle(request, "work"):
        continue
    if request["parameters"].get("stop"):
        answer(request, "no more")
        threading.Event().wait()
    answer(request, len(request["parameters"]["text"]))
"""


def test_c1_100_mb_for_a_guest_that_stops_reading_end_on_time_and_block_nobody(
    manager, load, healthy
):
    load(STOPS_READING, sidecar="cancel_timeout: 1\nmax_retries: 100")
    assert manager.call("work", {"text": "abc"}, timeout=10) == 3
    assert manager.call("work", {"stop": True}, timeout=10) == "no more"
    large = {"text": "x" * 10_000_000}
    growth = watch_memory()
    slowest = 0.0

    async def from_a_loop() -> list[BaseException | None]:
        nonlocal slowest
        calls = [manager.call_async("work", large, timeout=3) for _ in range(3)]
        calls.append(asyncio.to_thread(manager.call, "work", large, timeout=3))
        tasks = [asyncio.ensure_future(call) for call in calls]
        while not all(task.done() for task in tasks):
            began = time.monotonic()
            await asyncio.sleep(0.01)
            slowest = max(slowest, time.monotonic() - began)
        return [task.exception() for task in tasks]

    with within(20):
        futures = [manager.submit("work", large, timeout=3) for _ in range(6)]
        outcomes = asyncio.run(from_a_loop())
        assert not wait(futures, 10).not_done
    outcomes += [future.exception() for future in futures]
    assert len(outcomes) == 10
    # Those that were made last may still be answered, by the process that replaces this one.
    failed = [one for one in outcomes if one is not None]
    assert len(failed) >= 5
    assert all(isinstance(one, (SlotTimeout, PluginUnavailable)) for one in failed), outcomes
    # Whoever held a lock, or the loop, across a write would have done so for three seconds.
    assert slowest < 2
    assert healthy.slowest < 2
    assert growth() < 160 * MIB
    # One with ids is only replaced when it has been silent for a second.
    with within(10):
        while True:
            try:
                assert manager.call("work", {"text": "abcd"}, timeout=20) == 4
                break
            except (PluginCrashed, PluginUnavailable):
                time.sleep(0.02)


@pytest.mark.parametrize("text", ["lines", "one line"])
def test_c2_a_guest_may_write_100_mb_before_it_reads_anything(manager, load, text):
    line = "b'n' * 999 + b'\\n'" if text == "lines" else "b'n' * 1000"
    growth = watch_memory()
    with within(40):
        load(
            f"""
            block = ({line}) * 1000
            for _ in range(100):
                write(block)
            write(b"\\n")
            for request in requests():
                if not lifecycle(request, "work"):
                    answer(request, request["parameters"])
            """
        )
        assert manager.call("work", {"n": 1}, timeout=20) == {"n": 1}
    # A line is kept until its end shows that it is no message: 100 MB, in a buffer that doubles.
    assert growth() < (48 if text == "lines" else 340) * MIB


def test_c2_a_guest_may_write_100_mb_before_it_reads_its_request(manager, load):
    load(
        """
        block = (b"n" * 999 + b"\\n") * 1000
        while line := os.read(0, 100):  # the begin of a request; the host goes on writing
            if b'"work"' in line:
                for _ in range(100):
                    write(block)
            while not line.endswith(b"\\n"):
                line += os.read(0, 1 << 20)
            request = json.loads(line)
            if not lifecycle(request, "work"):
                answer(request, len(request["parameters"]["text"]))
        """
    )
    for attempt in call_each_way(manager, "work", {"text": "y" * 1_000_000}, 30):
        with within(30):
            assert attempt() == 1_000_000


FLOODS = {
    "lines": ("(b'e' * 4095 + b'\\n') * 256", 1024),
    "one line": ("b'e' * 1048576", 1024),
    "binary": ("bytes(range(256)) * 4096", 64),
}


@pytest.mark.parametrize(
    ("style", "flood"),
    [("ids", "lines"), ("no-ids", "one line"), ("ids", "binary"), ("no-ids", "binary")],
)
def test_c3_a_gigabyte_on_stderr_is_read_and_neither_kept_nor_logged_whole(
    manager, load, caplog, flood
):
    block, times = FLOODS[flood]
    caplog.set_level(logging.DEBUG, LOGGER)
    load(
        f"""
        for request in requests():
            if lifecycle(request, "work"):
                continue
            block = memoryview({block})
            for _ in range({times}):
                rest = block
                while rest:
                    rest = rest[os.write(2, rest):]
            answer(request, len(block) * {times})
        """
    )
    growth = watch_memory()
    began = time.monotonic()
    with within(50):  # the guest is never blocked: it answers when it has written all
        assert manager.call("work", timeout=50) == times * MIB
    took = time.monotonic() - began
    manager.unload_plugin("scripted")
    assert growth() < 64 * MIB
    records = [record for record in caplog.records if record.name == LOGGER]
    assert records
    assert len(records) < 1000 + 500 * (took + 5)  # a burst, and so many a second
    assert all(len(record.getMessage()) < 20_000 for record in records)
    if flood != "one line":
        assert any("were not logged" in record.getMessage() for record in records)


def test_c4_both_sides_that_write_before_they_read_do_not_wait_for_each_other(manager, load):
    load(
        """
        while line := os.read(0, 100):  # the begin of a request; the host goes on writing
            if b'"work"' in line:
                write((b"n" * 999 + b"\\n") * 4000)
            while not line.endswith(b"\\n"):
                line += os.read(0, 1 << 20)
            request = json.loads(line)
            if not lifecycle(request, "work"):
                answer(request, request["parameters"])
        """
    )
    large = {"text": "z" * 4_000_000}
    for attempt in call_each_way(manager, "work", large, 30):
        with within(30):
            assert attempt() == large


def test_c4_large_messages_of_many_calls_cross_each_other(manager, load):
    load(
        """
        for request in requests():
            if not lifecycle(request, "work"):
                answer(request, request["parameters"])  # while the host writes the next ones
        """
    )
    with within(40):
        sent = [{"n": n, "text": chr(97 + n) * 2_000_000} for n in range(12)]
        futures = [manager.submit("work", one, timeout=40) for one in sent]
        for one, future in zip(sent, futures, strict=True):
            assert future.result(40) == one
        assert list(manager.map("work", sent)) == sent


BURST = """
def chunk(request, data):
    chunk = {"type": "guest_chunk", "id": request["id"], "data": data}
    if not frame(request, "").startswith('{"type"'):
        del chunk["id"]
    return json.dumps(chunk).encode() + b"\\n"

for request in requests():
    if not lifecycle(request, "work"):
        count = request["parameters"]["count"]
        burst = [chunk(request, [n, "x" * (n % 7)]) for n in range(count)]
        write(b"".join(burst) + envelope(request, count))
"""


def test_c5_chunks_and_the_result_in_one_burst_are_a_whole_stream(manager, load):
    load(BURST)
    for count in (0, 1, 5000):
        with within(30):
            stream = manager.stream("work", {"count": count}, timeout=20)
            assert list(stream) == [[n, "x" * (n % 7)] for n in range(count)]
        assert stream.result == count

    async def in_a_loop() -> tuple[list[object], object]:
        stream = manager.stream("work", {"count": 500}, timeout=20)
        return [chunk async for chunk in stream], stream.result

    with within(30):
        chunks, result = asyncio.run(in_a_loop())
    assert (len(chunks), result) == (500, 500)
    assert manager.call("work", {"count": 0}, timeout=10) == 0


def test_c5_chunks_for_a_call_that_is_no_stream_leave_its_result_alone(manager, load):
    load(BURST)
    for count in (1, 5000):
        for attempt in call_each_way(manager, "work", {"count": count}, 20):
            with within(30):
                assert attempt() == count


def test_c5_progress_that_is_no_message_does_not_keep_the_result_in_its_burst(manager, load):
    load(
        """
        for request in requests():
            if not lifecycle(request, "work"):
                steps = "".join('{"type":"progress","percent":%d}\\n' % n for n in range(101))
                write(steps.encode() * 20 + envelope(request, request["parameters"]))
        """
    )
    for n in range(10):
        for attempt in call_each_way(manager, "work", {"n": n}, 10):
            with within(10):
                assert attempt() == {"n": n}


@pytest.mark.parametrize("ending", ["os._exit(3)", "os.close(0); time.sleep(60)"])
def test_c6_a_guest_that_hangs_up_in_the_middle_of_a_request_is_one_clear_error(
    manager, load, ending
):
    load(
        f"""
        while line := os.read(0, 4096):
            if line.endswith(b"\\n"):
                request = json.loads(line)
                if not lifecycle(request, "work"):
                    answer(request, "small")
            else:
                {ending}
        """,
        sidecar="stop_timeout: 0\nmax_retries: 100",
    )
    large = {"text": "w" * 8_000_000}
    for attempt in call_each_way(manager, "work", large, 20):
        before = pid_of(manager)
        with within(8), pytest.raises(PluginCrashed) as caught:
            attempt()
        assert (caught.value.plugin, caught.value.slot) == ("scripted", "work")
        assert "8000" in str(caught.value)  # it names the size, which often is the cause
        if "_exit" in ending:
            assert caught.value.exit_status == 3
        assert manager.call("work", {}, timeout=20) == "small"
        assert pid_of(manager) != before


def test_c6_sigpipe_does_not_kill_a_host_that_has_not_ignored_it(load, manager, run_python):
    load(
        """
        while line := os.read(0, 4096):
            if line.endswith(b"\\n"):
                lifecycle(json.loads(line), "work")
            else:
                os._exit(3)
        """
    )
    done = run_python(
        f"""
        import logging, signal
        from zeno_fast import PluginCrashed, PluginManager
        logging.disable()
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # as programs do that write to a pager
        with PluginManager() as manager:
            manager.load_plugin({str(manager.get_plugin("scripted").folder)!r})
            for _ in range(3):
                try:
                    manager.call("work", {{"text": "w" * 8_000_000}}, timeout=20)
                except PluginCrashed as error:
                    print("crashed", error.exit_status)
        """
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "crashed 3\n" * 3, "")


def test_c6_an_error_of_the_guest_beside_a_closed_stdin_is_still_delivered(manager, load):
    load(
        """
        for request in requests():
            if not lifecycle(request, "work"):
                os.close(0)
                fail(request, "last words")
                os._exit(0)
        """
    )
    for attempt in call_each_way(manager, "work", {}, 20):
        with within(10), pytest.raises(SlotError, match="last words"):
            attempt()
        manager.reload_plugin("scripted")

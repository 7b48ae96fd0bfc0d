"""WASM guests that leak, or take much memory at times, for very many calls."""

from __future__ import annotations

import pytest
from fault.bounds import MIB, resident, within
from fault.wasm_guests import doing, in_threads
from wasm.conftest import ALLOC, ECHO_BODY, ECHO_DATA, module

from zeno_fast import PluginCrashed

pytestmark = pytest.mark.usefixtures("healthy_wasm")

CALLS = {"direct": 200_000, "public": 5_000}  # the public API takes far longer for one
LEFT = 60 * MIB  # what may be left resident of all that was taken, beside the idle instances


def left(before: int, plugin) -> int:
    """Return by how much the host has grown, idle instances left out."""
    return resident() - before - int(plugin.status()["memory"])


def test_f6_a_guest_that_leaks_every_answer_is_replaced_in_time(manager, load_wasm, way):
    # Each answer takes 1 KiB more, of which nothing is ever freed.
    leak = "(drop (call $alloc (i32.const 1000)))" + ECHO_BODY
    body = leak.replace("(local $out i32) (local $p i32) (local $n i32)", "")
    code = module("(local $out i32) (local $p i32) (local $n i32)" + body, ECHO_DATA)
    plugin = load_wasm(code, memory=16 * MIB, instances=1)
    slot = plugin.driver.bind(plugin.slots["run"])
    before = resident()
    with within(60):
        for n in range(CALLS[way]):
            assert slot.call({"n": n}, None, None) == {"n": n}
    status = plugin.status()
    assert status["served"] == CALLS[way]
    assert status["recycled"] >= CALLS[way] * 1000 // (16 * MIB) - 1
    assert (status["broken"], status["instances"], status["busy"]) == (0, 1, 0)
    assert status["memory"] <= 16 * MIB
    assert left(before, plugin) < LEFT


def test_f6_a_guest_that_takes_50_mb_at_times_leaves_nothing_behind(manager, load_wasm, way):
    # Writes to all of the memory that it takes, in the slot `spike`; never gives it back.
    body = """
      (if (i32.eq (i32.load8_u (local.get $name)) (i32.const 115)) (then
        (local.set $nlen (call $alloc (i32.const 52428800)))
        (if (i32.eqz (local.get $nlen)) (then unreachable))
        (memory.fill (local.get $nlen) (i32.const 1) (i32.const 52428800))))"""
    plugin = load_wasm(doing(body), slots=("run", "spike"), memory=128 * MIB, instances=2)
    before = resident()
    many = CALLS[way] // 100

    def work(number):
        for n in range(many):
            assert manager.call("spike" if n % (many // 12) == number else "run", timeout=60) == 1

    with within(60):
        for _ in range(2):
            in_threads(3, work)
            assert left(before, plugin) < LEFT
    status = plugin.status()
    assert status["recycled"] >= 15
    assert (status["broken"], status["busy"], status["waiting"]) == (0, 0, 0)
    assert status["memory"] <= 2 * 64 * MIB  # half of what an instance may have


def test_f6_guests_that_break_leave_nothing_behind(manager, load_wasm, way):
    many = {"direct": 2000, "public": 300}[way]
    body = "(memory.fill (i32.const 65536) (i32.const 1) (i32.const 65536)) unreachable"
    plugin = load_wasm(doing(body), instances=1)

    def call(count):
        for _ in range(count):
            with pytest.raises(PluginCrashed):
                manager.call("run")

    call(50)
    before = resident()
    with within(60):
        call(many)
    assert plugin.status()["broken"] == many + 50
    assert resident() - before < 20 * MIB


def test_f6_a_guest_that_is_loaded_again_and_again_leaves_nothing_behind(manager, load_wasm):
    code = doing("(memory.fill (i32.const 65536) (i32.const 1) (i32.const 65536))")

    def reload(count):
        for _ in range(count):
            load_wasm(code)
            assert manager.call("run") == 1
            manager.unload_plugin("hostile")

    reload(20)
    before = resident()
    with within(60):
        reload(150)
    assert resident() - before < 20 * MIB


def test_f6_parameters_and_answers_of_many_sizes_leave_nothing_behind(manager, load_wasm, way):
    plugin = load_wasm(module(ECHO_BODY, ECHO_DATA, alloc=ALLOC), memory=64 * MIB, instances=1)
    sizes = [0, 10, 2_000, 100_000, 3_000_000, 9_000_000]

    def call(times):
        for _ in range(times):
            for nbytes in sizes:
                assert len(manager.call("run", {"t": "x" * nbytes}, timeout=60)["t"]) == nbytes

    call(2)
    before = resident()
    with within(60):
        call(8)
    assert plugin.status()["recycled"] > 0
    assert left(before, plugin) < LEFT

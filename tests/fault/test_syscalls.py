"""What a call costs in system calls, counted in a process of its own on one processor."""

from __future__ import annotations

import json

import pytest

COUNTED = """
import json, os
from zeno_fast import PluginManager

os.sched_setaffinity(0, {{min(os.sched_getaffinity(0))}})
with PluginManager({folder!r}) as manager:
    slot = next(name for name in manager.slots if name.endswith(".echo"))

    def counted(work, calls):
        for _ in range(50):
            manager.call(slot, {{"value": "warm"}})
        shim.shim_reset()
        work(calls)
        return sum(shim.shim_count(which) for which in (READ, WRITE, POLL, YIELD)) / calls

    def serial(calls):
        for n in range(calls):
            assert manager.call(slot, {{"value": n}}) == n

    def mapped(calls):
        answers = manager.map(slot, ({{"value": n}} for n in range(calls)))
        assert list(answers) == list(range(calls))

    print(json.dumps([counted(serial, 1000), counted(mapped, 20_000)]))
"""


@pytest.mark.parametrize(("guest", "most_of_map"), [("c", 0.2), ("c-no-ids", 5)])
def test_a_call_costs_few_system_calls(run_under_shim, build_guest, tmp_path, guest, most_of_map):
    (tmp_path / "plugins").mkdir()
    build_guest(guest, tmp_path / "plugins")
    done = run_under_shim(COUNTED.format(folder=str(tmp_path / "plugins")))
    assert (done.returncode, done.stderr) == (0, "")
    serial, mapped = json.loads(done.stdout)
    assert 1 <= serial < 3.02  # a few meet the end of a blocking read, which is bounded
    # Without ids a guest is given one call at a time.
    assert 0 < mapped < most_of_map

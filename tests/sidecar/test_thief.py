"""A guest that reads its own output, where the host marks the end of its blocking reads."""

from __future__ import annotations

import time

import pytest

from zeno_fast import SlotTimeout


def test_c1_a_guest_that_reads_its_own_stdout_holds_no_caller(manager, make_plugin):
    manager.load_plugin(
        make_plugin(
            """
            import threading

            def steal():
                mine = os.open("/proc/self/fd/1", os.O_RDONLY)
                while True:
                    os.read(mine, 65536)

            for request in requests():
                if lifecycle(request, "steal"):
                    continue
                threading.Thread(target=steal, daemon=True).start()
            """,
            sidecar="stop_timeout: 0",
        )
    )
    for _ in range(3):
        began = time.monotonic()
        with pytest.raises(SlotTimeout):
            manager.call("steal", timeout=0.5)
        assert 0.499 < time.monotonic() - began < 3

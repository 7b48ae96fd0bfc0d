"""The ways of calling a slot, and waiting for what a guest or the host does meanwhile."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable
from concurrent.futures import wait
from typing import Any

from zeno_fast import PluginManager

WAYS = ["call", "submit", "call_async", "map", "stream"]


# `work` is handed to a thread, so that the guest reads on; the others are answered at once.
WORKER = """
stopped = {}

def work(request):
    stopped[request["id"]].wait(request["parameters"].get("seconds", 0))
    answer(request, request["parameters"])

cancelled = []
kinds = []
for request in requests():
    kinds.append(request.get("type"))
    if request.get("type") == "cancel":
        cancelled.append(request["id"])
        if request["id"] in stopped:
            stopped[request["id"]].set()
    elif request.get("type") == "host_response" or greeted(
        request, "work", "echo", "cancelled", "kinds", features=FEATURES
    ):
        pass
    elif request["slot_name"] == "work":
        stopped[request["id"]] = threading.Event()
        if FEATURES:
            put({"type": "host_call", "id": "w", "function": "working", "parameters": {}})
        threading.Thread(target=work, args=(request,), daemon=True).start()
    elif request["slot_name"] == "cancelled":
        answer(request, len(cancelled) == len(set(cancelled) & set(stopped)) and len(cancelled))
    elif request["slot_name"] == "kinds":
        answer(request, sorted(set(kinds)))
    else:
        answer(request, request["parameters"])
"""


def call_by(
    way: str, manager: PluginManager, slot: str, parameters: dict[str, Any], timeout: float
) -> Any:
    """Call a slot in one of WAYS from this thread and return its data."""
    if way == "call":
        return manager.call(slot, parameters, timeout=timeout)
    if way == "submit":
        future = manager.submit(slot, parameters, timeout=timeout)
        assert not wait([future], timeout + 20).not_done  # which does not read along
        return future.result(0)
    if way == "call_async":
        return asyncio.run(manager.call_async(slot, parameters, timeout=timeout))
    if way == "map":
        return next(manager.map(slot, [parameters], timeout=timeout))
    with manager.stream(slot, parameters, timeout=timeout) as stream:
        list(stream)
    return stream.result


def wait_until(condition: Callable[[], object], seconds: float = 10.0) -> None:
    """Wait until a condition holds, or fail."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.002)


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True

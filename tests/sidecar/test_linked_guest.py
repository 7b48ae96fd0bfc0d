"""The guest library as functions, for languages that link to C: here through ctypes."""

from __future__ import annotations

from pathlib import Path

import pytest
from c_programs import AS_LIBRARY, INCLUDE, compile_program

GUEST = """
import ctypes, json
library = ctypes.CDLL("LIBRARY")
for name in ("new", "bytes", "new_bytes", "buffer_bytes"):
    getattr(library, "zeno_guest_" + name).restype = ctypes.c_void_p
library.zeno_guest_receive.restype = ctypes.c_int64
link = ctypes.c_void_p(library.zeno_guest_new())
SLOTS = [{"name": "linked.echo"}, {"name": "linked.double"}]

def double(place):
    offset, nbytes, *id = place
    if id:
        at = library.zeno_guest_buffer_bytes(link, ctypes.c_uint64(id[0]), ctypes.c_uint64(offset),
                                             ctypes.c_uint64(nbytes))
    else:
        at = library.zeno_guest_bytes(link, ctypes.c_uint64(offset), ctypes.c_uint64(nbytes))
    sent = ctypes.string_at(at, nbytes)
    room = ctypes.c_uint64()
    to = library.zeno_guest_new_bytes(link, ctypes.c_uint64(2 * nbytes), ctypes.byref(room))
    ctypes.memmove(to, sent + sent, 2 * nbytes)
    return {"$bytes": [room.value, 2 * nbytes]}

message = ctypes.c_void_p()
while (nbytes := library.zeno_guest_receive(link, ctypes.byref(message))) >= 0:
    request = json.loads(ctypes.string_at(message, nbytes))
    if request["type"] == "forget_buffers":
        for id in request["buffers"]:
            library.zeno_guest_forget_buffer(link, ctypes.c_uint64(id))
        continue
    slot, answer = request["slot_name"], {"type": "guest_response", "id": request["id"]}
    answer |= {"success": True, "binary": slot == "linked.double"}
    if slot == "plugin_init":
        answer["data"] = {"features": ["shm", "arena", "buffers"]}
    elif slot == "plugin_register_slots":
        answer["data"] = SLOTS
    elif slot == "linked.echo":
        answer["data"] = request["parameters"]
    else:
        answer["data"] = double(request["parameters"]["data"]["$bytes"])
    text = json.dumps(answer).encode()
    assert library.zeno_guest_send(link, text, ctypes.c_size_t(len(text))) == 0
    if slot == "plugin_init":
        library.zeno_guest_use_ring(link)
library.zeno_guest_free(link)
"""


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("library")
    return compile_program(INCLUDE / "zeno_guest.c", folder, options=["-O2", *AS_LIBRARY])


def test_a_guest_in_another_language_links_to_the_library(manager, make_plugin, library):
    manager.load_plugin(make_plugin(GUEST.replace("LIBRARY", str(library)), name="linked"))
    assert manager.get_plugin("linked").status()["transport"] == "shm"
    for n in range(100):
        assert manager.call("linked.echo", {"n": n}) == {"n": n}
        assert manager.call("linked.double", {"data": bytes([n]) * n}) == bytes([n]) * 2 * n
    buffer = manager.buffer(100)
    memoryview(buffer)[:] = b"\x07" * 100
    assert manager.call("linked.double", {"data": buffer}) == b"\x07" * 200
    del buffer
    other = manager.buffer(10)
    assert manager.call("linked.double", {"data": other}) == bytes(20)
    assert manager.call("linked.echo", {"text": "x" * 1_000_000}) == {"text": "x" * 1_000_000}

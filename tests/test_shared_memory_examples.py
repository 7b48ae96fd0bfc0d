"""The example of each guest library: the same plugin, over shared memory and over lines."""

from __future__ import annotations

import array

import numpy as np
import pytest
from guests.build import GUESTS, SHARED
from sidecar.ring_guest import is_shared

from zeno_fast import Manifest, SlotError

NAMES = sorted(name for name, guest in GUESTS.items() if guest.folder.parent == SHARED)


def test_every_example_is_built_by_a_test():
    assert {f"negative-{path.parent.name}" for path in SHARED.glob("*/manifest.yaml")} == {*NAMES}


@pytest.mark.parametrize("transport", ["shm", "stdio"])
@pytest.mark.parametrize("name", NAMES)
def test_an_example_inverts_pictures(manager, build_guest, tmp_path, name, transport):
    folder = build_guest(name, tmp_path)
    assert Manifest.load(folder, strict=True).name == name
    manifest = folder / "manifest.yaml"
    manifest.write_text(manifest.read_text() + f"  transport: {transport}\n")
    manager.load_plugin(folder)
    assert manager.get_plugin(name).status()["transport"] == transport
    picture = np.arange(640 * 480 * 3, dtype=np.uint32).astype(np.uint8).reshape(480, 640, 3)
    for _ in range(3):
        answer = manager.call(f"{name}.invert", {"picture": picture})
        assert is_shared(answer) == (transport == "shm")
        inverted = np.asarray(answer)
        assert (inverted.dtype, inverted.shape) == (picture.dtype, picture.shape)
        assert np.array_equal(inverted, 255 - picture)
    samples = array.array("H", range(1000))
    answer = manager.call(f"{name}.invert", {"picture": samples})
    assert answer.format == "H"
    assert answer.tolist() == [0xFFFF - sample for sample in samples]
    for nbytes in range(5):
        answer = manager.call(f"{name}.invert", {"picture": b"\x0f" * nbytes})
        assert answer == b"\xf0" * nbytes
    with pytest.raises(SlotError):
        manager.call(f"{name}.invert", {"picture": 5})


@pytest.mark.parametrize("name", NAMES)
def test_an_example_inverts_what_lies_in_a_buffer(manager, build_guest, tmp_path, name):
    manager.load_plugin(build_guest(name, tmp_path))
    buffer = manager.buffer(3 * 5000)
    picture = np.frombuffer(buffer, "u1").reshape(50, 100, 3)
    picture[:] = 1
    answer = np.asarray(manager.call(f"{name}.invert", {"picture": picture}))
    assert (answer.dtype, answer.shape) == (picture.dtype, picture.shape)
    assert (answer == 254).all()

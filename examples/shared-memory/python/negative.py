#!/usr/bin/env python3
"""Inverts pictures in shared memory, as a sidecar in Python."""

from typing import Any

from zeno_fast.guest import Plugin

INVERTED = bytes(255 - byte for byte in range(256))
plugin = Plugin("negative-python", version="1.0.0")


@plugin.slot
def invert(picture: Any) -> Any:
    """Invert every byte of a picture.

    It comes as a memoryview, of whichever type and shape; so does what is returned go.
    """
    inverted = memoryview(picture.tobytes().translate(INVERTED))
    if picture.format == "B" and picture.ndim == 1:
        return inverted
    return inverted.cast(picture.format, picture.shape)


plugin.run()

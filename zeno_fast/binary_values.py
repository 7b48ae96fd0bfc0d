"""Types of binary values, as NumPy and the buffer protocol name what JSON tells by a string."""

from __future__ import annotations

import math
import sys
from typing import Any

# Format characters of the buffer protocol with native sizes, and NumPy's name without byte order.
NAMES = {
    "b": "i1", "B": "u1", "?": "b1", "h": "i2", "H": "u2", "i": "i4", "I": "u4", "q": "i8",
    "Q": "u8", "f": "f4", "d": "f8",
}  # fmt: skip
FORMATS: dict[str, Any] = {name: letter for letter, name in NAMES.items()}
NATIVE = "<" if sys.byteorder == "little" else ">"
if memoryview(b"\0" * 8).cast("l").itemsize == 8:
    NAMES |= {"l": "i8", "L": "u8"}
MOST_DIMENSIONS = 32


def dtype_of(format: str) -> str:
    """Return NumPy's name of a native format of the buffer protocol. Raises TypeError."""
    letter = format.removeprefix("@").removeprefix("=")
    if letter.startswith(NATIVE):
        letter = letter[1:]
    name = NAMES.get(letter)
    if name is None:
        raise TypeError(f"elements of the format {format!r} have no name that guests know")
    return f"{'|' if name.endswith('1') else NATIVE}{name}"


def element_type(view: memoryview[Any], dtype: Any, shape: Any) -> memoryview[Any]:
    """Return a view of bytes as elements of a NumPy type, in C order.

    Args:
        view: Of bytes.
        dtype: Such as `<f4`; None for plain bytes.
        shape: A list of lengths, or None for one dimension.

    Raises ValueError where that does not fit.
    """
    if dtype is None and shape is None:
        return view
    name = str(dtype or "|u1")
    letter = FORMATS.get(name[1:])
    if letter is None or name[0] not in f"|={NATIVE}":
        raise ValueError(f"elements of the type {dtype!r} cannot be viewed here")
    if view.nbytes % int(name[2:]):
        raise ValueError(f"{view.nbytes} bytes are no whole number of {dtype}")
    elements: memoryview[Any] = view.cast(letter)
    if shape is None:
        return elements
    if not (
        isinstance(shape, list)
        and len(shape) <= MOST_DIMENSIONS
        and all(type(length) is int and length >= 0 for length in shape)
        and math.prod(shape) * int(name[2:]) == view.nbytes
    ):
        raise ValueError(f"{view.nbytes} bytes of {dtype} do not have the shape {shape!r}")
    if len(shape) != 1 and 0 not in shape:  # with several dimensions none can be without elements
        elements = view.cast(letter, shape)
    return elements

"""What one small call takes from Python's allocators: its request, its answer, and little else."""

from __future__ import annotations

import ctypes
import functools
import os
import shutil
import subprocess
import sysconfig
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import orjson
import pytest

from .conftest import ECHO, Load

# What a call takes beside its JSON: for a small answer nothing, for a large one, which is decoded
# where it is, a view of it.
EXTRA = {"small": 0, "large": 2}
WARM_UP = 20  # calls that fill free lists, and orjson's cache of keys

Count = Callable[..., "tuple[int, list[int]]"]


@pytest.fixture(scope="module")
def counter_library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the library that counts."""
    compiler = os.environ.get("CC", "cc")
    if shutil.which(compiler) is None:
        pytest.skip(f"there is no {compiler}; `apt install gcc` would bring it")
    include = sysconfig.get_path("include")
    if not (Path(include) / "Python.h").exists():
        pytest.skip(f"there is no Python.h in {include}; `apt install python3-dev` may bring it")
    source = Path(__file__).parents[1] / "c" / "allocation_counter.c"
    library = tmp_path_factory.mktemp("counter") / "allocation_counter.so"
    built = subprocess.run(
        [compiler, "-std=c11", "-O2", "-Wall", "-Wextra", "-Wconversion", "-Werror", "-shared",
         "-fPIC", "-isystem", include, str(source), "-o", str(library)],
        capture_output=True, text=True, timeout=100, check=False,
    )  # fmt: skip
    assert built.returncode == 0, built.stderr
    return library


@pytest.fixture
def count(counter_library: Path) -> Iterator[Count]:
    """Call a function of C and tell how often it asks for memory, and for how many bytes."""
    library = ctypes.PyDLL(str(counter_library))
    library.counter_measure.argtypes = [ctypes.py_object]
    library.counter_measure.restype = ctypes.c_int64
    library.counter_size.argtypes = [ctypes.c_int64]
    library.counter_size.restype = ctypes.c_size_t

    def measure(function: Callable[..., Any], *arguments: Any) -> tuple[int, list[int]]:
        bound = functools.partial(function, *arguments)
        for _ in range(WARM_UP):
            bound()
        asked = library.counter_measure(bound)
        return asked, [library.counter_size(n) for n in range(asked)]

    library.counter_install()
    yield measure
    library.counter_remove()


def test_the_counter_counts_objects(count: Count) -> None:
    assert count(bytes, 100) == (1, [133])
    assert count(list, range(9))[0] >= 1
    assert count(abs, 1) == (0, [])


@pytest.mark.parametrize("timeout", [None, 5.0])
@pytest.mark.parametrize(
    "parameters",
    [
        None,
        {},
        {"a": 1},
        {"n": 123456, "text": "hello world", "list": [1.5, 2.5, None, {"k": True}]},
        {"text": "x" * 1900},
        {"text": "x" * 5000},
    ],
    ids=["none", "empty", "one", "several", "1900 bytes", "5000 bytes"],
)
def test_a_call_takes_little_more_memory_than_its_json(
    load: Load, way: str, count: Count, parameters: dict[str, Any] | None, timeout: float | None
) -> None:
    if way == "public":
        pytest.skip("only direct calls are to do without objects")
    slot = load(ECHO, instances=1).slot()
    answer = orjson.dumps({"success": True, "data": parameters or {}})
    assert slot.call(parameters, timeout, None) == (parameters or {})
    encoding = count(orjson.dumps, parameters, None, orjson.OPT_SERIALIZE_NUMPY)
    decoding = count(orjson.loads, answer)
    least = decoding[0] + (encoding[0] if parameters else 0)  # nothing is encoded for nothing
    calling = count(slot.call, parameters, timeout, None)
    extra = EXTRA["small" if len(answer) < 2048 else "large"]
    assert calling[0] <= least + extra, (calling, encoding, decoding)

from collections.abc import Callable, Iterable
from typing import Any, final

from zeno_fast._shm import Arena

@final
class BinaryWay:
    arena: Arena | None
    arrays: bool
    give: Callable[[Any], bool] | None

@final
class BinarySink:
    def __init__(self, way: BinaryWay | None, lists: Iterable[Any]) -> None: ...
    def __call__(self, value: Any) -> Any: ...

def read_bytes(value: Any) -> Any: ...

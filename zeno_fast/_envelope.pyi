from collections.abc import Callable, Iterable, Mapping
from typing import Any, final

from zeno_fast._shm import Arena
from zeno_fast.plugin import SlotDefinition

@final
class InputCheck:
    slot: str
    plugin: str
    def __init__(self, definition: SlotDefinition) -> None: ...
    def lists(self, parameters: Mapping[str, Any]) -> list[Any]: ...
    def __call__(self, parameters: Any) -> dict[str, Any]: ...

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
def set_context_provider(provider: Callable[[], dict[str, str] | None] | None) -> None: ...
def parameters_of(payload: bytes, arena: Arena | None = None) -> Any: ...

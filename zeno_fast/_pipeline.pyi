from collections.abc import Iterator
from typing import Any, final

from zeno_fast._slot import DirectSlot

@final
class Pipeline:
    def __init__(
        self,
        slot: DirectSlot,
        driver: Any,
        source: Iterator[Any],
        timeout: float | None,
        scope: Any,
        width: int,
        max_nbytes: int,
    ) -> None: ...
    def __iter__(self) -> Pipeline: ...
    def __next__(self) -> Any: ...
    def take_held(self) -> tuple[bytes, list[Any] | None] | None: ...
    def close(self) -> None: ...

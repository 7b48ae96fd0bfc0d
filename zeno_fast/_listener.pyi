from typing import Any

from typing_extensions import disjoint_base

from zeno_fast._correlator import Correlator
from zeno_fast._pipe import Pipe

@disjoint_base
class Listener(Correlator):
    @property
    def noise(self) -> int: ...
    def __init__(
        self,
        pipe: Pipe,
        owner: Any,
        plugin: str,
        max_queue: int,
        max_request: int,
        strict: bool,
    ) -> None: ...

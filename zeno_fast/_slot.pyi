from collections.abc import Callable
from typing import Any, final

from typing_extensions import disjoint_base

from zeno_fast._bytes import BinaryWay
from zeno_fast._call import RequestTemplate
from zeno_fast._channel import Channel
from zeno_fast._statistics import SlotStatistics
from zeno_fast.plugin import SlotDefinition

LATE: float

@final
class Route:
    def lead_to(self, channels: tuple[Channel, ...], grows: bool) -> None: ...
    def pick(self) -> Channel | None: ...

@disjoint_base
class DirectSlot:
    @property
    def definition(self) -> SlotDefinition: ...
    @property
    def template(self) -> RequestTemplate: ...
    def __init__(
        self,
        definition: SlotDefinition,
        route: Route,
        timeout: float,
        exchange: Callable[[RequestTemplate, bytes, int, Any], Any],
        statistics: SlotStatistics,
        way: BinaryWay | None = None,
    ) -> None: ...
    def encode(self, parameters: Any) -> bytes: ...
    def kept_for(self, payload: bytes) -> list[Any] | None: ...
    def keep_for(self, payload: bytes, blocks: list[Any] | None) -> None: ...
    def hold_late(self, blocks: list[Any] | None) -> None: ...
    def timeout_ns(self, timeout: float | None) -> int: ...
    def deadline_ns(self, timeout: float | None) -> int: ...
    def call(self, parameters: Any, timeout: float | None, scope: Any) -> Any: ...

from collections.abc import Mapping, MutableMapping, Sequence
from typing import Any, final

import wasmtime
from typing_extensions import disjoint_base

from zeno_fast._statistics import SlotStatistics
from zeno_fast.log import GuestLog
from zeno_fast.plugin import SlotDefinition
from zeno_fast.wasm.failures import Failures
from zeno_fast.wasm.guest import Guest as AnyGuest
from zeno_fast.wasm.hostcalls import HostCalls
from zeno_fast.wasm.imports import HostFunction
from zeno_fast.wasm.pool import InstancePool
from zeno_fast.wasm.program import Program

def stack_left() -> int: ...
def loads_prefix(text: bytes) -> Any: ...
def read_answer(text: bytes, failures: Failures, slot: Slot) -> Any: ...
def define_host_functions(linker: wasmtime.Linker, functions: Sequence[HostFunction]) -> None: ...

@final
class Guest:
    broken: bool
    worn: bool
    unreached: bool
    interrupted: bool
    owner: int
    served: int
    def __init__(
        self,
        program: Program,
        pre: wasmtime.InstancePre,
        engine_address: int,
        host_calls: HostCalls,
    ) -> None: ...
    @property
    def streams(self) -> tuple[GuestLog, GuestLog]: ...
    @property
    def deadline(self) -> int: ...
    @property
    def memory_size(self) -> int: ...
    def read(self, address: int, nbytes: int) -> bytes: ...
    def write(self, address: int, data: bytes) -> None: ...
    def instantiate(self, deadline: int) -> None: ...
    def run(self, name: str, deadline: int, may_exit: bool = False) -> int: ...
    def settle(self) -> None: ...
    def text_of(self, name: str, answer: int) -> bytes: ...
    def interrupt(self) -> None: ...
    def close(self) -> None: ...

@final
class IdleGuests:
    def __init__(self, limit: int) -> None: ...
    def __len__(self) -> int: ...
    def guests(self) -> list[AnyGuest]: ...
    def take(self) -> AnyGuest | None: ...
    def put(self, guest: AnyGuest) -> int: ...

@disjoint_base
class Slot:
    definition: SlotDefinition
    name: str
    plugin: str
    head: bytes
    tail: bytes
    def __init__(
        self,
        definition: SlotDefinition,
        pool: InstancePool,
        timeout: float,
        direct: bool,
        statistics: SlotStatistics,
    ) -> None: ...
    def call(
        self,
        parameters: Mapping[str, Any] | None,
        timeout: float | None,
        scope: MutableMapping[str, Any] | None,
    ) -> Any: ...
    def forward(
        self, text: bytes, deadline: int, scope: MutableMapping[str, Any] | None
    ) -> Any: ...
    def encode(self, parameters: Mapping[str, Any] | None) -> bytes: ...
    def call_encoded(
        self,
        text: bytes,
        deadline: int,
        seconds: float,
        scope: MutableMapping[str, Any] | None,
    ) -> Any: ...

from collections.abc import Mapping
from typing import final

import wasmtime

STRUCT_SIZES: Mapping[str, int]
MISMATCH: str

def now_ns() -> int: ...
def deadline_ns(seconds: float) -> int: ...
def keep_engine(engine: wasmtime.Engine) -> int: ...

@final
class Watch:
    def __init__(self, store_address: int, engine_address: int) -> None: ...

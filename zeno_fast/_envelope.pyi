from typing import Any, final

from zeno_fast.plugin import SlotDefinition

@final
class InputCheck:
    slot: str
    plugin: str
    def __init__(self, definition: SlotDefinition) -> None: ...
    def __call__(self, parameters: Any) -> dict[str, Any]: ...

def dump_parameters(parameters: Any, plugin: str, slot: str) -> bytes: ...

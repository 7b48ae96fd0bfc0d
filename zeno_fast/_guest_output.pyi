from typing import final

WRITE: int
RELEASE: int

@final
class GuestOutput:
    def retain(self, stream: int) -> int: ...
    def take(self, stream: int) -> tuple[bytes, int]: ...

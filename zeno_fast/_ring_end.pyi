from typing import final

from zeno_fast._shm import Segment

@final
class RingEnd:
    def __init__(self, segment: Segment, wake_fd: int, max_message: int) -> None: ...

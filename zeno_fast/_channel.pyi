from typing import Any, final

from zeno_fast._call import Call, RequestTemplate
from zeno_fast._leadership import Leadership
from zeno_fast._shm import Segment

@final
class Channel(Leadership):
    def call(
        self, template: RequestTemplate, payload: bytes, deadline_ns: int, scope: Any
    ) -> Any: ...
    def start(
        self,
        template: RequestTemplate,
        payload: bytes,
        deadline_ns: int,
        scope: Any,
        future: Any,
        watcher: Any,
    ) -> Call: ...
    def ask_soon(
        self, template: RequestTemplate, payload: bytes, deadline_ns: int, scope: Any, watcher: Any
    ) -> Any: ...
    def start_ping(
        self,
        template: RequestTemplate,
        payload: bytes,
        deadline_ns: int,
        future: Any,
        watcher: Any,
    ) -> Call: ...
    def start_stream(
        self,
        template: RequestTemplate,
        payload: bytes,
        deadline_ns: int,
        scope: Any,
        sink: Any,
        watcher: Any,
    ) -> Call: ...
    def wait_ready(self, call: Call) -> None: ...
    def join(self, call: Call, deadline_ns: int) -> None: ...
    def abandon(self, call: Call) -> None: ...
    def send(self, line: bytes) -> bool: ...
    def use_ring(self, segment: Segment) -> None: ...
    def retire(self) -> bool: ...
    def close_write(self) -> None: ...
    def close(self) -> bool: ...

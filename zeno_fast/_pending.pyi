from typing import final

@final
class PendingCalls: ...

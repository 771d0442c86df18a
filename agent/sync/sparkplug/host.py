"""Whether the primary host is there, by its STATE messages (Sparkplug 3.0, 6.4.25)."""

import msgspec
from msgspec import Struct

from agent.words import quoted


class _State(Struct):
    online: bool
    timestamp: int


class PrimaryHost:
    """As its STATE messages over one connection say: the first is believed, then none that is older
    than the last. `fault` is what was wrong with the last message."""

    def __init__(self) -> None:
        self.online: bool | None = None  # None: it has said nothing yet
        self.fault = ""
        self._at_ms = 0

    def heard(self, content: bytes) -> None:
        """A STATE came."""
        try:
            state = msgspec.json.decode(content, type=_State)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            said = quoted(content.decode(errors="replace"), 80)
            self.fault = f"{said} is no STATE of Sparkplug 3.0: {error}"
            return
        if self.online is not None and state.timestamp < self._at_ms:
            behind_s = (self._at_ms - state.timestamp) / 1000
            self.fault = f"a STATE that is {behind_s:.3f} s older than the last was passed over"
            return
        self.online, self.fault, self._at_ms = state.online, "", state.timestamp

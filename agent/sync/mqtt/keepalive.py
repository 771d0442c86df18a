"""Whether the broker is still there, judged by the bytes that come from it.

After half an interval in which nothing came, or nothing went out, it is pinged. When an interval
and a quarter have gone by without a byte, the connection is over. With a look each eighth of an
interval that is noticed before one and a half intervals, whatever is being sent meanwhile: what is
sent into a half-open link proves nothing.
"""

from enum import Enum

PING = 0.5  # of an interval
OVER = 1.25
LOOK = 0.125
LATE = 2 * LOOK  # between two looks: the loop stood still, and bytes may wait to be read


class Verdict(Enum):
    """What a look says is to be done."""

    FINE = "fine"
    PING = "ping"
    OVER = "over"


class KeepAlive:
    """Of one connection, from the moment it was accepted; all times are monotonic."""

    def __init__(self, interval_s: float, now: float) -> None:
        self.interval_s = interval_s
        self.look_s = interval_s * LOOK
        self.received_at = self.sent_at = self._looked_at = now
        self._pinged_at = -1.0

    def received(self, now: float) -> None:
        """Bytes came."""
        self.received_at = now

    def sent(self, now: float) -> None:
        """Bytes went out."""
        self.sent_at = now

    def look(self, now: float) -> Verdict:
        """To be asked each `look_s`; `PING` counts as done."""
        late = now - self._looked_at > LATE * self.interval_s
        self._looked_at = now
        if now - self.received_at >= OVER * self.interval_s and not late:
            return Verdict.OVER
        quiet_s = now - min(self.received_at, self.sent_at)
        if quiet_s >= PING * self.interval_s and self._pinged_at <= self.received_at:
            self._pinged_at = now
            return Verdict.PING
        return Verdict.FINE

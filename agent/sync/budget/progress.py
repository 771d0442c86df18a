"""How fast the backlog goes, and when it will be gone.

Rates are differences of totals over the last WINDOW_S, or since the link came up. Of what arrives
the last NEWEST_S count where that is less: as soon as producers end, the backlog has an end too.

Limits  : a mark for each call of `mark` in the last WINDOW_S.
"""

from collections import deque
from typing import Protocol

from msgspec import Struct

from agent.clock import Clock

WINDOW_S = 60.0
NEWEST_S = 15.0  # some looks at the backlog
KNOWN_AFTER_S = 5.0  # of being connected: less says nothing of a rate


class Waiting(Protocol):
    """What of a stream (epoch and name) the far side has not acknowledged, its dead letters aside.

    `bytes` are of bodies and blobs; `oldest_age_s` is of running time, None where nothing waits.
    """

    @property
    def name(self) -> tuple[str, str]: ...  # noqa: D102
    @property
    def priority(self) -> int: ...  # noqa: D102
    @property
    def records(self) -> int: ...  # noqa: D102
    @property
    def bytes(self) -> int: ...  # noqa: D102
    @property
    def oldest_age_s(self) -> float | None: ...  # noqa: D102


class Rates(Struct, frozen=True):
    """Means over the last WINDOW_S of being connected; None while too little is known.

    `sent` is what messages carry, compressed; the others are bodies and blobs as the store counts.
    `arriving` is that of the last NEWEST_S, if that is less.
    """

    sent_bytes_per_s: float | None = None
    acknowledged_records_per_s: float | None = None
    acknowledged_bytes_per_s: float | None = None
    arriving_bytes_per_s: float | None = None


class _Mark(Struct, frozen=True):
    """The totals at an instant; `arrived_bytes` is what had come by then, if it was looked at."""

    at: float
    sent_bytes: int
    records: int
    bytes: int
    arrived_bytes: int | None


class Progress:
    """Told by the uplink what goes; used in the event loop's thread alone."""

    def __init__(self, clock: Clock) -> None:
        self.acked_at: float | None = None  # monotonic
        self.sent_bytes = 0  # these three since the start
        self.acknowledged_records = 0
        self.acknowledged_bytes = 0
        self._clock = clock
        self._marks: deque[_Mark] = deque()

    def sent(self, size_bytes: int) -> None:
        """A message with so much payload went out."""
        self.sent_bytes += size_bytes

    def acknowledged(self, records: int, size_bytes: int) -> None:
        """The far side has so many records more, their bodies and blobs taken together."""
        self.acked_at = self._clock.monotonic()
        self.acknowledged_records += records
        self.acknowledged_bytes += size_bytes

    def mark(self, backlog_bytes: int | None) -> None:
        """Remember how far it is, and that so much waits (None: nobody looked). Once a second."""
        now, gone = self._clock.monotonic(), self.acknowledged_bytes
        arrived = None if backlog_bytes is None else backlog_bytes + gone
        self._marks.append(_Mark(now, self.sent_bytes, self.acknowledged_records, gone, arrived))
        while self._marks[0].at < now - WINDOW_S:
            self._marks.popleft()

    def rates(self, connected_since: float | None) -> Rates:
        """Since then, or over the last WINDOW_S if that is shorter; None: there is no link."""
        now = self._clock.monotonic()
        if connected_since is None:
            return Rates()
        marks = [one for one in self._marks if one.at >= max(connected_since, now - WINDOW_S)]
        if not marks or now - marks[0].at < KNOWN_AFTER_S:
            return Rates()
        first, span_s = marks[0], now - marks[0].at
        return Rates(
            (self.sent_bytes - first.sent_bytes) / span_s,
            (self.acknowledged_records - first.records) / span_s,
            (self.acknowledged_bytes - first.bytes) / span_s,
            _arriving(marks, now - NEWEST_S),
        )


def eta_s(backlog_bytes: int, rates: Rates) -> float | None:
    """Seconds until nothing waits, if it goes on so; None: not known, or it does not shrink."""
    if backlog_bytes == 0:
        return 0.0
    leaving, coming = rates.acknowledged_bytes_per_s, rates.arriving_bytes_per_s
    if leaving is None or coming is None or leaving <= coming:
        return None
    return backlog_bytes / (leaving - coming)


def _arriving(marks: list[_Mark], newest: float) -> float | None:
    """What came from the first look at the backlog to the last: how it grew, and what left it; or,
    if it is less, what came since the first look after `newest` (or the one before the last).

    What is given up unsent makes it less, never below nothing.
    """
    seen = [(one.at, one.arrived_bytes) for one in marks if one.arrived_bytes is not None]
    if not seen or seen[-1][0] - seen[0][0] < KNOWN_AFTER_S:
        return None
    ended, after = seen[-1]
    lately = min(newest, ended - KNOWN_AFTER_S)
    begins = seen[0], next((one for one in seen[:-1] if one[0] >= lately), seen[-2])
    return max(0.0, min((after - before) / (ended - begun) for begun, before in begins))

"""A circuit breaker: a model that errs too often is left alone for a while.

closed     calls go through; above ERRORS_MAX of at least CALLS_MIN calls in WINDOW_S: open
open       no call goes through, for OPEN_S
half-open  one call at a time goes through; it closes the breaker, or opens it again
"""

from collections import deque
from typing import Literal

ERRORS_MAX = 0.2
CALLS_MIN = 10
WINDOW_S = 30.0
OPEN_S = 10.0
CALLS_MAX = 1000  # the last ones are enough

State = Literal["closed", "open", "half-open"]


class Breaker:
    """Of one version of one model; every method is told the time, in monotonic seconds."""

    def __init__(self) -> None:
        self._calls: deque[tuple[float, bool]] = deque()  # when, and whether it erred
        self._errors = 0
        self._opened_s: float | None = None
        self._passes = 0  # those given since it changed last have this number
        self._probing_until_s = 0.0

    def state(self, now_s: float) -> State:
        """What it does now."""
        if self._opened_s is None:
            return "closed"
        return "open" if now_s < self._opened_s + OPEN_S else "half-open"

    def admits(self, now_s: float) -> int | None:
        """A pass for one call, for `went`, or None; in half-open it is the probe's."""
        match self.state(now_s):
            case "closed":
                return self._passes
            case "open":
                return None
        if now_s < self._probing_until_s:
            return None
        self._probing_until_s = now_s + OPEN_S  # one that is never heard of blocks no longer
        self._passes += 1
        return self._passes

    def retry_s(self, now_s: float) -> float:
        """When a call may go through again."""
        if self._opened_s is None:
            return 0.0
        return max(0.1, max(self._opened_s + OPEN_S, self._probing_until_s) - now_s)

    def went(self, now_s: float, admitted: int, *, erred: bool | None) -> bool:
        """A call with this pass came to its end; whether the breaker has changed.

        `erred` None: its end says nothing about the model.
        """
        if admitted != self._passes:  # it was under way when the breaker changed
            return False
        if self._opened_s is not None:
            return self._probed(now_s, erred)
        if erred is None:
            return False
        self._calls.append((now_s, erred))
        self._errors += erred
        while self._calls[0][0] < now_s - WINDOW_S or len(self._calls) > CALLS_MAX:
            self._errors -= self._calls.popleft()[1]
        if len(self._calls) < CALLS_MIN or self._errors <= ERRORS_MAX * len(self._calls):
            return False
        self._turn(now_s)
        return True

    def reopen(self, now_s: float, for_s: float) -> None:
        """It was open before this process, and is for so long yet."""
        self._turn(now_s + min(for_s, OPEN_S) - OPEN_S)

    def _probed(self, now_s: float, erred: bool | None) -> bool:
        self._probing_until_s = 0.0
        if erred is None:
            return False
        self._turn(now_s if erred else None)
        return True

    def _turn(self, opened_s: float | None) -> None:
        """Open it, or close it."""
        self._opened_s = opened_s
        self._passes += 1
        self._calls.clear()
        self._errors = 0

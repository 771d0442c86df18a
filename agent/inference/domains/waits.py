"""For how long the processes of a domain wanted a processor, and had none."""

from collections.abc import Iterable
from typing import Protocol


class Waiter(Protocol):
    """Who may want one; an instance."""

    def waited_s(self) -> float:
        """How long it has been ready to run, and had no processor."""


class Waits:
    """Of one domain: of those that wait at the same time, the longest counts alone."""

    def __init__(self) -> None:
        self._total_s = 0.0
        self._known: dict[Waiter, float] = {}

    def look(self, waiters: Iterable[Waiter]) -> float:
        """Seconds so far, by all looks; one that is seen first is counted from the next one on."""
        known = self._known  # what says nothing now has waited for no less than before
        self._known = {one: max(one.waited_s(), known.get(one, 0.0)) for one in waiters}
        more_s = [now_s - known.get(one, now_s) for one, now_s in self._known.items()]
        self._total_s += max(0.0, *more_s) if more_s else 0.0
        return self._total_s

"""Whether the event loop comes round: what it is late adds up, and too much of it is no progress.

One block that is too long ends the process (watchdog.py); this is for a loop that is held up again
and again, while everything in it gets its turn in between. A thread of its own counts the time in
which this process ran: one that was stopped, starved, or slept with the machine is late for no
fault of its own. Where a call into C keeps that thread from running too, the time that the process
computed counts.

Limits: looks of the last WINDOW_S are remembered.
"""

import threading
import time
from collections import deque
from typing import Self

from agent.clock import Clock
from agent.health.watchdog.policy import Reading

WINDOW_S = 60.0
LATE_S = 24.0  # of these: the loop does not move
TURN_S = 1.0  # of the thread; one that comes later did not run all the time
COUNTED_S = 1.2 * TURN_S


class Lag:
    """A context manager; `read` is to be called in the loop, each `period_s`."""

    def __init__(self, clock: Clock, period_s: float) -> None:
        self._clock = clock
        self._period_s = period_s
        self._calm = 0
        self._late = deque[tuple[float, float]]()  # when, and how much
        self._at_s: float | None = None  # of the last look
        self._cpu_s = 0.0
        self._seen_s = 0.0
        self._ran_s = 0.0  # written by the thread alone
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._count, name="lag", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()

    @property
    def late_s(self) -> float:
        """How much it was late, in all, in the last WINDOW_S."""
        return sum(late_s for _, late_s in self._late)

    def read(self) -> Reading:
        """One more look."""
        now_s, cpu_s, ran_s = self._clock.monotonic(), time.process_time(), self._ran_s
        if self._at_s is not None:  # what was before the first look, a start, is no turn of it
            worked_s = max(ran_s - self._seen_s, cpu_s - self._cpu_s)
            self.looked(now_s, min(now_s - self._at_s, worked_s))
        self._at_s, self._cpu_s, self._seen_s = now_s, cpu_s, ran_s
        return Reading(self._calm, owed=True)

    def looked(self, now_s: float, passed_s: float) -> None:
        """A look, so long after the one before, as far as this process ran."""
        self._late.append((now_s, max(0.0, passed_s - 2 * self._period_s)))
        while now_s - self._late[0][0] > WINDOW_S:
            self._late.popleft()
        if self.late_s < LATE_S:
            self._calm += 1

    def _count(self) -> None:
        before_s = self._clock.monotonic()
        while not self._over.wait(TURN_S):
            now_s = self._clock.monotonic()
            self._ran_s += min(now_s - before_s, COUNTED_S)
            before_s = now_s

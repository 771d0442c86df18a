"""How long a connection may say nothing: its one timer.

A request must not cost a timer, so there is one at a time, which looks whether the connection is
due by then. What it said may lie in the socket unread: it is due at two looks before it is out.
"""

import asyncio
from collections.abc import Callable
from typing import Protocol

from agent.api.entry.limits import Limits
from agent.api.entry.pace import Pace

DOUBT_S = 0.1  # a second look before an end; a timer so late: this process stood still


class Waited(Protocol):
    """The connection."""

    @property
    def busy(self) -> bool:
        """Whether it waits for us."""

    @property
    def read(self) -> bool:
        """Whether what it sends is read now."""

    def turn_out(self) -> None:
        """It said nothing for too long."""


class Patience:
    """With one connection: `begin` when it is there, `end` when it is gone."""

    def __init__(self, whose: Waited, limits: Limits) -> None:
        self._whose = whose
        self._limits = limits
        self._loop = asyncio.get_running_loop()
        self._due_s: float | None = None  # when it will have been silent for too long
        self._timer: asyncio.TimerHandle | None = None
        self._look_s = 0.0  # when it comes; uvloop's own does not say so where it comes at once
        self._limit_s = 0.0  # that is due then
        self._doubted = False  # it was due at the last look too
        self._stuck = False  # it is due because the client does not take its answer
        self._pace: Pace | None = None  # of the body that comes
        self._slow: Callable[[], None] | None = None  # who is told, where its pace is not kept

    def begin(self) -> None:
        """It is connected, and is to bring a request."""
        self._wait(self._limits.first_request_s)
        self._look()

    def end(self) -> None:
        """It is gone."""
        if self._timer:
            self._timer.cancel()

    def rest(self) -> None:
        """A new limit, for the next request."""
        self._wait(self._limits.next_request_s)

    def free(self) -> None:
        """No limit."""
        self._due_s, self._stuck, self._pace, self._slow = None, False, None, None

    def receive(self, whole_s: float | None, slow: Callable[[], None] | None = None) -> None:
        """The limits for a body; `slow` is told, where they are not kept, and nobody turned out."""
        now_s, limits = self._loop.time(), self._limits
        pace = Pace(now_s, whole_s or limits.body_s, limits.pause_s)
        self._wait(pace.due_s - now_s)
        self._pace, self._slow = pace, slow

    def came(self, size_bytes: int) -> None:
        """So much came, of a body or of another thing."""
        if self._pace is None:
            return
        now_s = self._loop.time()
        self._pace.came(size_bytes, now_s)
        self._due_s = self._pace.due_s
        self._doubted = self._doubted and self._due_s <= now_s  # a byte is no reason to hope

    def stick(self) -> None:
        """An answer that is made as it is taken must be taken."""
        if self._due_s is None:
            self._wait(self._limits.taking_s)
            self._stuck = True

    def flow(self) -> None:
        """It is taken again."""
        if self._stuck:
            self._stuck, self._due_s = False, None

    def _wait(self, seconds: float) -> None:
        self.free()
        self._limit_s, self._doubted = seconds, False
        self._due_s = self._loop.time() + seconds
        if self._timer and self._look_s > self._due_s:
            self._timer.cancel()
            self._look_at(self._due_s)

    def _look(self) -> None:
        """Whether it is due."""
        now_s, limits = self._loop.time(), self._limits
        if self._pace and not self._whose.read:
            self._pace.excuse(now_s)
            self._due_s = self._pace.due_s
        waiting = self._due_s is None or self._whose.busy
        due_s = now_s + limits.next_request_s if waiting or self._due_s is None else self._due_s
        if due_s > now_s:
            self._look_at(due_s)
        elif not self._doubted:  # what it said may lie in the socket, or come as soon as we read
            self._doubted = True
            stood_still = now_s - self._look_s > DOUBT_S
            self._look_at(now_s + (self._limit_s if stood_still else DOUBT_S))
        elif self._slow:
            slow = self._slow
            self.free()
            self._look_at(now_s + limits.next_request_s)
            slow()
        else:
            self._whose.turn_out()

    def _look_at(self, when_s: float) -> None:
        self._look_s = when_s
        self._timer = self._loop.call_at(when_s, self._look)

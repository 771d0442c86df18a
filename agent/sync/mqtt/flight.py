"""The messages of one connection that the broker has not answered yet, and who waits for room."""

import asyncio
from collections import deque
from typing import Any

from msgspec import Struct
from paho.mqtt.reasoncodes import ReasonCode

from agent.clock import Clock
from agent.errors import LinkError

OVERDUE = 10  # times the patience: one message without an answer, though others had theirs


class Sent(Struct):
    """A message that the broker has not answered yet."""

    answer: asyncio.Future[int]
    topic: str
    at: float  # monotonic


class Flight:
    """Bounded: up to `free` messages are out, the rest waits in turn."""

    def __init__(self, clock: Clock) -> None:
        self.free = 0
        self._clock = clock
        self._loop = asyncio.get_running_loop()
        self._sent: dict[int, Sent] = {}  # by packet id, the oldest first
        self._queue: deque[asyncio.Future[None]] = deque()
        self._answered_at = 0.0

    async def room(self) -> None:
        """Return when one more may go out; raises what `end` was told."""
        if self.free > 0:
            self.free -= 1
            return
        turn: asyncio.Future[None] = self._loop.create_future()
        self._queue.append(turn)
        try:
            await turn  # the place of one that was answered
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled() and not turn.exception():
                self._pass_on()
            raise

    def expect(self, mid: int, topic: str) -> asyncio.Future[int]:
        """Packet `mid` is out; the future of the reason code of the broker's answer."""
        future: asyncio.Future[int] = self._loop.create_future()
        future.add_done_callback(lambda f: f.cancelled() or f.exception())  # seen, if nobody asks
        self._sent[mid] = Sent(future, topic, self._clock.monotonic())
        return future

    def answered(self, mid: int) -> Sent | None:
        """The broker answered; the next in turn gets the place. None: we never sent that."""
        sent = self._sent.pop(mid, None)
        if sent is None:
            return None
        self._answered_at = self._clock.monotonic()
        self._pass_on()
        return sent

    def _pass_on(self) -> None:
        """A place is free: the next in turn gets it."""
        while self._queue:
            turn = self._queue.popleft()
            if not turn.done():
                turn.set_result(None)
                return
        self.free += 1

    def overdue_s(self, patience_s: float) -> float | None:
        """How long the oldest message has waited, when that is too long."""
        if not self._sent:
            return None
        now, oldest = self._clock.monotonic(), next(iter(self._sent.values())).at
        silent = now - max(oldest, self._answered_at) > patience_s
        return now - oldest if silent or now - oldest > OVERDUE * patience_s else None

    @property
    def idle(self) -> bool:
        """Whether the broker has answered all that went out."""
        return not self._sent

    def end(self, error: LinkError) -> None:
        """Nothing will be answered any more."""
        waiting: list[asyncio.Future[Any]] = [sent.answer for sent in self._sent.values()]
        for future in (*waiting, *self._queue):
            if not future.done():
                future.set_exception(error)
        self._sent.clear()


def settle(sent: Sent, code: ReasonCode) -> None:
    """Give whoever waits for it the broker's word."""
    if sent.answer.done():
        return
    if code.is_failure:
        sent.answer.set_exception(LinkError(f"the broker refused {sent.topic}: {code}"))
    else:
        sent.answer.set_result(code.value)

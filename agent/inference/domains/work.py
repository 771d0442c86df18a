"""One call on its way through a domain."""

import asyncio
from collections.abc import Hashable, Sequence
from enum import IntEnum
from typing import NamedTuple, Protocol

import msgspec

from agent.inference.wire import Buffer


class Class(IntEnum):
    """How urgent a call is: of two that wait, the lower goes first."""

    REALTIME = 0
    INTERACTIVE = 1
    BATCH = 2


class Result(NamedTuple):
    """The answer to a call: its engine's own head, its body, and who gave it."""

    head: msgspec.Raw
    body: memoryview
    model: str  # its label: name, version, digest
    ep: str
    cached: bool = False


class Times:
    """When what happened to a call, in seconds of CLOCK_BOOTTIME; 0: not, or not yet."""

    __slots__ = ("answered_s", "arrived_s", "began_s", "ended_s", "received_s", "sent_s")

    def __init__(self, arrived_s: float) -> None:
        self.arrived_s = arrived_s
        self.sent_s = self.received_s = self.began_s = self.ended_s = self.answered_s = 0.0


class Holder(Protocol):
    """Who has been given a call."""

    def withdraw(self, work: "Work") -> None:
        """Nobody waits for it any more."""


class Work:
    """A call, from its arrival to its answer.

    `key`: calls of one key may travel together; `rows` is what it counts in a batch. `once`: never
    to be made again after a worker died of it. `alone`: in a message of its own. `gathers`: it may
    wait a little for others of its key. `label`: of the one version that may answer.
    """

    __slots__ = (
        "alone",
        "batched",
        "body",
        "deadline_s",
        "done",
        "gathers",
        "head",
        "holder",
        "id",
        "key",
        "klass",
        "label",
        "model",
        "once",
        "pid",
        "rows",
        "size_bytes",
        "times",
        "tries",
    )

    def __init__(
        self,
        model: str,
        head: msgspec.Raw,
        body: Sequence[Buffer],
        *,
        size_bytes: int,
        klass: Class,
        now_s: float,
        timeout_s: float,
        key: Hashable = None,
        rows: int = 1,
        once: bool = False,
        alone: bool = False,
        gathers: bool = True,
        label: str | None = None,
    ) -> None:
        self.id = 0  # given by the domain
        self.model = model
        self.head = head
        self.body = body
        self.size_bytes = size_bytes
        self.klass = klass
        self.label = label
        self.key = key
        self.rows = rows
        self.once = once
        self.alone = alone
        self.gathers = gathers
        self.deadline_s = now_s + timeout_s
        self.done: asyncio.Future[Result] = asyncio.get_running_loop().create_future()
        self.holder: Holder | None = None  # the instance that was given it last
        self.tries = 0  # workers that died while they had it
        self.batched = 0  # calls in its last message
        self.pid = 0  # of the worker that had it last
        self.times = Times(now_s)

    def answer(self, result: Result) -> None:
        """It has an answer, unless nobody waits any more."""
        if not self.done.done():
            self.done.set_result(result)

    def fail(self, error: Exception) -> None:
        """There will be no answer."""
        if not self.done.done():
            self.done.set_exception(error)

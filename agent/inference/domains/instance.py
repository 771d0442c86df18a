"""One instance: a worker process in service, and the calls it has.

Limits  : what is under way is bounded by who sends (domain.py); a call that is not answered within
          `call_timeout_s` of its turn, or a start that takes `start_timeout_s`, ends the process.
Recovery: when the process ends, all calls it had are handed back, and its shared memory is gone.
"""

import asyncio
import logging
from collections.abc import Iterable
from typing import Protocol

import msgspec

from agent.clock import Clock
from agent.config import Domain as Settings
from agent.errors import DomainError
from agent.inference import wire
from agent.inference.catalog import Model
from agent.inference.domains.process import Process, named, spawned
from agent.inference.domains.work import Result, Work
from agent.tasks import finished

log = logging.getLogger("domain")
LAST_WORDS_S = 1.0  # of a worker that has closed its socket
ARENA_BYTES = 32 << 20
ARENA_FROM_BYTES = 64 << 10  # smaller bodies go through the socket; bench/ipc.py
Message = wire.Answers | wire.Hello | wire.Failure


class Flight:
    """One batch under way."""

    __slots__ = ("cost_s", "places", "works")

    def __init__(self, works: list[Work], cost_s: float, places: list[int]) -> None:
        self.works = works
        self.cost_s = cost_s  # as estimated
        self.places = places  # of the arena


class Cell(Protocol):
    """What holds a domain's processes within its limits."""

    def environment(self) -> dict[str, str]:
        """What a process is to find in its environment beside the agent's own."""

    async def admit(self, pid: int) -> None:
        """Put a fresh process under them."""

    async def died(self) -> str:
        """Why one was killed, if it was the limits; else nothing."""


class Owner(Protocol):
    """Whom an instance tells; a domain."""

    def came(self, instance: "Instance") -> None:
        """It is ready."""

    def answered(self, instance: "Instance", flight: Flight, answers: wire.Answers) -> None:
        """A batch is done, and each of its calls has what it asked for, or an error."""

    def ailing(self, instance: "Instance") -> None:
        """It is ready no longer: it ends."""

    def went(self, instance: "Instance", works: list[Work], cause: str) -> None:
        """It has ended; `works` are the calls it had."""


class Instance:
    """A worker process from its start to its end."""

    def __init__(
        self,
        setup: wire.Setup,
        labels: dict[str, str],
        settings: Settings,
        owner: Owner,
        clock: Clock,
        cell: Cell,
    ) -> None:
        """`labels` by model; `cell` puts the process under the domain's limits."""
        self.pid: int | None = None
        self.ready = False
        self.excused = False  # its end was asked for
        self.loaded: dict[str, wire.Loaded] = {}
        self.flights: dict[int, Flight] = {}
        self._setup = setup
        self.labels = labels
        self.settings = settings
        self._owner = owner
        self._clock = clock
        self._cell = cell
        self._process: Process | None = None
        self._blame = ""  # why it was ended, where that is known better than by its status
        self._hello: asyncio.Future[wire.Hello] | None = None
        self._batches = 0
        self._turn_s = 0.0  # since when the oldest flight is at it
        self._timer: asyncio.TimerHandle | None = None
        self._row_bytes: dict[str, int] = {}  # of the largest answers lately
        self._decoder = msgspec.msgpack.Decoder(Message)

    @property
    def calls(self) -> int:
        """Calls under way."""
        return sum(len(flight.works) for flight in self.flights.values())

    @property
    def cost_s(self) -> float:
        """What is under way, in seconds of its own time as estimated."""
        return sum(flight.cost_s for flight in self.flights.values())

    async def run(self) -> str:
        """From its start to its end; why it ended. Cancelled, it ends the process in order."""
        cause = "it was stopped"
        try:
            cause = await self._live()
            return cause
        finally:
            self.ready = False
            if self._timer:
                self._timer.cancel()
            try:
                if self._process:
                    await finished(self._process.end())
            finally:
                works = [work for flight in self.flights.values() for work in flight.works]
                self.flights.clear()
                self._owner.went(self, works, cause)

    async def _live(self) -> str:
        self._hello = asyncio.get_running_loop().create_future()
        try:
            process = self._process = await spawned(
                self._heard, self._closed, ARENA_BYTES, self._cell.environment()
            )
        except OSError as error:
            return f"no process could be started: {error}"
        self.pid = process.pid
        await self._cell.admit(process.pid)
        process.send(self._setup)
        early = ""
        try:
            async with asyncio.timeout(self.settings.start_timeout_s):
                hello = await self._hello
        except TimeoutError:
            self.kill(f"not ready within {self.settings.start_timeout_s} s")
        except DomainError:
            early = " before it was ready"
        else:
            self.loaded = hello.models
            self.ready = True
            self._owner.came(self)
        status = await process.ended()
        said = f"its process ended with {named(status)}{early}"
        return self._blame or await self._cell.died() or said

    def send(self, works: list[Work], cost_s: float) -> None:
        """Have these calls made, all of one model."""
        assert self._process is not None
        now_s = self._clock.monotonic()
        calls, body, places = [], list[wire.Buffer](), list[int]()
        for work in works:
            at = self._placed(work, places)
            if at == wire.NOT_IN_ARENA:
                body += work.body
            calls.append(wire.Call(work.id, work.head, work.size_bytes, work.deadline_s, at))
            work.times.sent_s = now_s
            work.batched = len(works)
            work.pid = self._process.pid
        self._batches += 1
        model = works[0].model
        room = self._room(model, sum(work.rows for work in works), places)
        if not self.flights:
            self._turn_s = now_s
        self.flights[self._batches] = Flight(works, cost_s, places)
        self._process.send(wire.Batch(self._batches, model, calls, room), body)
        if self._timer is None:
            self._watch(self.settings.call_timeout_s)

    def withdraw(self, work: Work) -> None:
        """Nobody waits for this call any more."""
        if self._process:
            self._process.withdraw(work.id)

    def apply(self, settings: Settings) -> None:
        """Other timeouts hold from now on."""
        self.settings = settings
        if self._timer:
            self._timer.cancel()
            self._look()

    def kill(self, why: str) -> None:
        """End it at once, for this reason."""
        self._blame = self._blame or why
        self._unready()
        if self._process:
            self._process.kill()

    def _placed(self, work: Work, places: list[int]) -> int:
        """Put a large body into the arena; where it is."""
        assert self._process is not None
        if work.size_bytes < ARENA_FROM_BYTES:
            return wire.NOT_IN_ARENA
        arena = self._process.arena
        at = arena.take(work.size_bytes)
        if at is None:
            return wire.NOT_IN_ARENA
        places.append(at)
        end = at
        for piece in work.body:
            view = memoryview(piece).cast("B")
            arena.view[end : end + len(view)] = view
            end += len(view)
        return at

    def _room(self, model: str, rows: int, places: list[int]) -> tuple[int, int]:
        """A stretch of the arena for answers, if they were large lately."""
        assert self._process is not None
        expected = self._row_bytes.get(model, 0) * rows
        if expected < ARENA_FROM_BYTES:
            return 0, 0
        at = self._process.arena.take(expected)
        if at is None:
            return 0, 0
        places.append(at)
        return at, expected

    def _heard(self, head: bytes, body: memoryview) -> None:
        """A message came."""
        try:
            message = self._decoder.decode(head)
            match message:
                case wire.Answers():
                    self._answered(message, body)
                case wire.Failure():
                    self._blame = self._blame or message.message
                case wire.Hello():
                    if self._hello and not self._hello.done():
                        self._hello.set_result(message)
        except (msgspec.DecodeError, LookupError, ValueError) as error:
            self.kill(f"the worker's answer makes no sense: {error!r}")

    def _answered(self, message: wire.Answers, body: memoryview) -> None:
        assert self._process is not None
        flight = self.flights[message.id]
        arena = self._process.arena
        total = sum(answer.size_bytes for answer in message.answers)
        if message.at != wire.NOT_IN_ARENA:
            # Copied, for the place is given to the next call; the reader may take its time.
            body = memoryview(bytes(arena.view[message.at : message.at + total]))
        if len(body) != total:
            raise ValueError(f"answers of {total} bytes came with {len(body)}")
        now_s = self._clock.monotonic()
        self._hand_out(flight, message, body, now_s)
        del self.flights[message.id]
        for place in flight.places:
            arena.give(place)
        self._turn_s = now_s
        self._owner.answered(self, flight, message)

    def _hand_out(
        self, flight: Flight, message: wire.Answers, body: memoryview, now_s: float
    ) -> None:
        """Each call its part of the answers."""
        model = flight.works[0].model
        ep, label = self.loaded[model].ep, self.labels[model]
        at = 0
        for work, answer in zip(flight.works, message.answers, strict=True):
            times = work.times
            times.received_s, times.began_s = message.received_s, message.began_s
            times.ended_s, times.answered_s = message.ended_s, now_s
            if not answer.fault:
                result = Result(answer.head, body[at : at + answer.size_bytes], label, ep)
                work.answer(result)
                at += answer.size_bytes
        rows = sum(work.rows for work in flight.works)
        self._row_bytes[model] = max(-(-at // max(1, rows)), self._row_bytes.get(model, 0) // 2)

    def _closed(self) -> None:
        """The worker closed its socket: let it end by itself, so that its own status is told."""
        self._unready()
        if self._hello and not self._hello.done():
            self._hello.set_exception(DomainError("it ended before it was ready"))
            self._hello.exception()  # it may be that nobody asks any more
        if self._process:
            asyncio.get_running_loop().call_later(LAST_WORDS_S, self._process.kill)

    def _unready(self) -> None:
        if self.ready:
            self.ready = False
            self._owner.ailing(self)

    def _watch(self, delay_s: float) -> None:
        self._timer = asyncio.get_running_loop().call_later(delay_s, self._look)

    def _look(self) -> None:
        """Whether the call whose turn it is takes too long. The timer runs only while calls do."""
        self._timer = None
        if not self.flights:
            if self._process:
                self._process.arena.trim()
            return
        left_s = self._turn_s + self.settings.call_timeout_s - self._clock.monotonic()
        if left_s > 0:
            self._watch(left_s)
        else:
            self.kill(f"no answer within {self.settings.call_timeout_s} s")


def setup_of(models: Iterable[Model], settings: Settings, threads: int) -> wire.Setup:
    """What an instance of these models is told."""
    loads = [
        wire.Load(
            name=model.manifest.name,
            engine=model.manifest.engine,
            path=str(model.path),
            options=model.manifest.options,
            sha256=model.sha256,
            batching=model.manifest.batching,
            finite=model.manifest.finite,
            warm_up=model.manifest.warm_up,
        )
        for model in models
    ]
    devices = list[str](settings.devices)
    return wire.Setup(loads, devices, threads, settings.gpu_memory_bytes_max)

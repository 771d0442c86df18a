"""One instance: a worker process in service, and the calls it has.

Limits  : what is under way is bounded by who sends (dispatch.py); a call that is not answered
          within `call_timeout_s` of its turn, or a start that takes `start_timeout_s`, ends the
          process, and so does silence while it has no call (watch.py). One that cannot be ended,
          since it sits in the kernel, is left behind (zygote.py).
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
from agent.inference.domains.flight import Bodies, Flight
from agent.inference.domains.process import Process, named, spawned
from agent.inference.domains.watch import PING, Watch
from agent.inference.domains.work import Result, Work
from agent.inference.domains.zygote import Zygote
from agent.tasks import through

log = logging.getLogger("domain")
LAST_WORDS_S = 1.0  # between the end of a worker and the end of its socket, either way round
ARENA_BYTES = 32 << 20
Message = wire.Answers | wire.Hello | wire.Failure


class Cell(Protocol):
    """What holds a domain's processes within its limits."""

    async def admit(self, pid: int) -> None:
        """Put a fresh process under them."""

    async def died(self) -> str:
        """Why one was killed, if it was the limits; else nothing."""

    def environment(self) -> dict[str, str]:
        """What a process is to find in its environment beside the agent's own."""


class Owner(Protocol):
    """Whom an instance tells; a domain."""

    def came(self, instance: "Instance") -> None:
        """It is ready."""

    def answered(self, instance: "Instance", flight: Flight, answers: wire.Answers) -> None:
        """A batch is done, and each of its calls has what it asked for, or an error."""

    def ailing(self, instance: "Instance") -> None:
        """It is ready no longer: it ends."""

    def went(
        self, instance: "Instance", begun: list[Work], waiting: list[Work], cause: str
    ) -> None:
        """It has ended; of the calls it had, it may have begun some."""


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
        zygote: Zygote,
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
        self._zygote = zygote
        self._process: Process | None = None
        self._bodies: Bodies
        self._watch: Watch
        self._blame = ""  # why it was ended, where that is known better than by its status
        self._hello: asyncio.Future[wire.Hello] = asyncio.get_running_loop().create_future()
        self._closed = asyncio.Event()  # its socket
        self._killed = asyncio.Event()
        self._senseless = False  # what it says
        self._batches = 0
        self._decoder = msgspec.msgpack.Decoder(Message)

    @property
    def calls(self) -> int:
        """Calls under way."""
        return sum(len(flight.works) for flight in self.flights.values())

    @property
    def cost_s(self) -> float:
        """What is under way, in seconds of its own time as estimated."""
        return sum(flight.cost_s for flight in self.flights.values())

    def waited_s(self) -> float:
        """How long its process has been ready to run, and had no processor."""
        return self._process.waited_s() if self._process else 0.0

    async def run(self) -> str:
        """From its start to its end; why it ended. Cancelled, it ends the process in order."""
        cause = "it was stopped"
        try:
            cause = await self._live()
            return cause
        finally:
            self.ready = False
            try:
                if self._process:
                    self._watch.stop()
                    await through(self._process.end())
            finally:
                self._hand_back(cause)

    def _hand_back(self, cause: str) -> None:
        """A worker makes its batches one after the other: the first alone may have begun.

        Of one that was not heard to its end, or made no sense, any may have.
        """
        works = [work for flight in self.flights.values() for work in flight.works]
        begun = len(next(iter(self.flights.values())).works) if self.flights else 0
        if self._senseless or not self._closed.is_set():
            begun = len(works)
        self.flights.clear()
        self._owner.went(self, works[:begun], works[begun:], cause)

    async def _live(self) -> str:
        try:
            environment = self._cell.environment()
            process = self._process = await spawned(
                self._zygote, self._heard, self._hung_up, ARENA_BYTES, environment
            )
        except OSError as error:
            return f"no process could be started: {error}"
        self.pid = process.pid
        self._bodies = Bodies(process.arena)
        self._watch = Watch(process, self.flights, self.settings, self._clock, self.kill)
        await self._cell.admit(process.pid)
        process.send(self._setup)
        early = "" if await self._greeted() else " before it was ready"
        status = await self._end_of(process)
        if status is None:
            return (
                f"{self._blame or 'it hung up'}; killed, it is still there: it sits in the kernel"
            )
        said = f"its process ended with {named(status)}{early}"
        return self._blame or await self._cell.died() or said

    async def _greeted(self) -> bool:
        """Until it is ready, or will never be; whether it is."""
        try:
            hello = await self._watch.first(self._hello)
        except DomainError:
            return False
        except TimeoutError:
            self.kill(f"not ready within {self.settings.start_timeout_s} s (start_timeout_s)")
            return False
        self.loaded = hello.models
        self.ready = True
        self._watch.begin()
        self._owner.came(self)
        return True

    async def _end_of(self, process: Process) -> int | None:
        """Its exit status, once all that it said is heard; none: it does not end."""
        signs = (process.ended(), self._closed.wait(), self._killed.wait())
        ends = [asyncio.ensure_future(one) for one in signs]
        try:
            await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
            self._unready()
            await asyncio.wait(ends[:2], timeout=LAST_WORDS_S)
            return await process.gone()
        finally:
            for one in ends:
                one.cancel()

    def send(self, works: list[Work], cost_s: float) -> None:
        """Have these calls made, all of one model."""
        assert self._process is not None
        now_s = self._clock.monotonic()
        flight = Flight(works, cost_s)
        calls, body = self._bodies.placed(flight)
        for work in works:
            work.times.sent_s = now_s
            work.batched = len(works)
            work.pid = self._process.pid
        self._watch.sent(now_s)
        self._batches += 1
        self.flights[self._batches] = flight
        self._process.send(wire.Batch(self._batches, works[0].model, calls, flight.room), body)

    def apply(self, settings: Settings) -> None:
        """Other timeouts hold from now on."""
        self.settings = settings
        if self._process:
            self._watch.apply(settings)

    def withdraw(self, work: Work) -> None:
        """Nobody waits for this call any more."""
        if self._process:
            self._process.withdraw(work.id)

    def kill(self, why: str) -> None:
        """End it at once, for this reason."""
        self._blame = self._blame or why
        self._unready()
        if self._process:
            self._process.kill()
            self._killed.set()

    def _heard(self, head: bytes, body: memoryview) -> None:
        """A message came."""
        if self._senseless:
            return
        try:
            message = self._decoder.decode(head)
            match message:
                case wire.Answers():
                    self._answered(message, body)
                case wire.Failure():
                    self._blame = self._blame or message.message
                case wire.Hello():
                    self._introduced(message)
        except (msgspec.DecodeError, LookupError, ValueError) as error:
            self._lost_sense(repr(error))

    def _introduced(self, hello: wire.Hello) -> None:
        if hello.models.keys() != self.labels.keys() or self._hello.done():
            raise ValueError(f"it says that it has {', '.join(hello.models)}")
        self._hello.set_result(hello)

    def _answered(self, message: wire.Answers, body: memoryview) -> None:
        now_s = self._clock.monotonic()
        if message.id == PING:
            self._watch.ponged()
        else:
            flight = self.flights[message.id]
            found = self._bodies.answered(flight, message, body)
            del self.flights[message.id]
            self._hand_out(flight, message, found, now_s)
        self._watch.answered(now_s)

    def _hand_out(
        self,
        flight: Flight,
        message: wire.Answers,
        found: list[tuple[msgspec.Raw, memoryview]],
        now_s: float,
    ) -> None:
        """Each call its answer."""
        model = flight.works[0].model
        ep, label = self.loaded[model].ep, self.labels[model]
        for work, answer, (head, body) in zip(flight.works, message.answers, found, strict=True):
            times = work.times
            times.received_s, times.began_s = message.received_s, message.began_s
            times.ended_s, times.answered_s = message.ended_s, now_s
            if not answer.fault:
                work.answer(Result(head, body, label, ep))
        self._owner.answered(self, flight, message)

    def _lost_sense(self, error: str) -> None:
        self._senseless = True
        self.kill(f"the worker's answer makes no sense: {error}")

    def _hung_up(self, fault: str) -> None:
        """Its socket is closed: let it end by itself, so that its own status is told."""
        self._closed.set()
        if fault:
            self._lost_sense(fault)
        self._unready()
        if not self._hello.done():
            self._hello.set_exception(DomainError(self._blame or "it ended before it was ready"))
            self._hello.exception()  # it may be that nobody asks any more

    def _unready(self) -> None:
        if self.ready:
            self.ready = False
            self._watch.stop()
            self._owner.ailing(self)


def setup_of(models: Iterable[Model], settings: Settings, threads: int) -> wire.Setup:
    """What an instance of these models is told."""
    loads = [
        wire.Load(
            name=model.manifest.name,
            engine=model.manifest.engine,
            path=str(model.path),
            options=model.manifest.options,
            sha256=model.weights_sha256,
            files=list(model.files),
            batching=model.manifest.batching,
            finite=model.manifest.finite,
            warm_up=model.manifest.warm_up,
        )
        for model in models
    ]
    devices = list[str](settings.devices)
    return wire.Setup(loads, devices, threads, settings.gpu_memory_bytes_max)

"""From the queue to the instances: what is sent when, and to whom; batches.py: with what.

An idle instance gets the next batch at once. A busy one gets one more ahead, so that it need not
wait for us, if all it has is cheap (AHEAD_S): what is costly waits here, where something more
urgent can still pass it. Should an instance run dry while another has a batch that it has not
begun, it gets that one too; the first answer counts.

A call whose worker died is made once more, alone: with no other call in that worker, so that none
pays for it. If that one dies too, it is given back. What a dead worker had not begun is as new.
"""

import asyncio
from collections.abc import Callable
from typing import Protocol

from agent.clock import Clock
from agent.config import Domain as Settings
from agent.errors import BusyError, CallLost, LateError, NotThere, RequestError, RunError
from agent.inference import wire
from agent.inference.domains.batches import ROWS_ANY, Batches, Kind
from agent.inference.domains.flight import Flight
from agent.inference.domains.instance import Instance
from agent.inference.domains.lease import Lease, Want
from agent.inference.domains.queue import Queue
from agent.inference.domains.work import Work

AHEAD_S = 0.008
AHEAD_MAX = 2  # batches under way in one instance
TRIES_MAX = 2  # workers that one call may cost
SWEEP_S = 0.02  # how late a caller may learn that its deadline has passed
AGE_S = 1.0
NOBODYS = 0  # the id of a call that was never submitted: a candidate's


class Ledger(Protocol):
    """Who is told of what has been done; figures.py."""

    def answered(self, works: list[Work], message: wire.Answers) -> None:
        """A batch is done."""


class Faults(Protocol):
    """Who can have a call made elsewhere when this is no place for it; a domain."""

    def failed(self, instance: Instance, work: Work, message: str) -> bool:
        """A call failed, for this reason; whether it is made again elsewhere."""

    def ended(self, instance: Instance, cause: str) -> None:
        """An instance ended, for this reason."""

    def elsewhere(self, work: Work) -> bool:
        """A call is to be made again; whether that is done elsewhere."""


class Nowhere:
    """There is no other place for a call."""

    def failed(self, instance: Instance, work: Work, message: str) -> bool:  # noqa: D102
        return False

    def ended(self, instance: Instance, cause: str) -> None: ...  # noqa: D102

    def elsewhere(self, work: Work) -> bool:  # noqa: D102
        return False


class Dispatch:
    """The calls of one domain."""

    def __init__(
        self,
        name: str,
        settings: Settings,
        kind: Kind,
        serving: Callable[[], list[Instance]],
        present: Callable[[], list[Instance]],
        clock: Clock,
        ledger: Ledger,
        lease: Lease,
    ) -> None:
        """`serving` get calls; `present` are all there are, those too that only finish theirs.

        `lease` shares out the time of the GPU.
        """
        self.queue = Queue(kind.queue_max, AGE_S)
        self.batches = Batches(kind, self.queue)
        self._name = name
        self._settings = settings
        self._serving = serving
        self._present = present
        self._clock = clock
        self._ledger = ledger
        self.faults: Faults = Nowhere()  # who is told what goes wrong
        self.seat = lease.seat(settings, self._want, self.pump_soon)
        self._works = 0
        self._closed = ""  # why
        self._pumping: asyncio.Handle | None = None
        self._sweeping: asyncio.TimerHandle | None = None
        self._gathering: asyncio.TimerHandle | None = None

    def apply(self, settings: Settings, kind: Kind) -> None:
        """Other settings hold from now on."""
        self._settings, self.batches.kind = settings, kind
        self.queue.calls_max = kind.queue_max
        self.seat.apply(settings)

    def submit(self, work: Work) -> None:
        """Accept a call, which is answered then, whatever happens. Raises BusyError."""
        if self._closed:
            raise self._refusal(self._closed)
        if self.queue.full:
            raise BusyError(
                f"domain {self._name}: {len(self.queue)} calls wait already",
                "try again later, or raise its queue_max or instances",
                self._wait_s(),
            )
        self.adopt(work)

    def adopt(self, work: Work) -> None:
        """Take a call that is accepted already: it finds room, whatever waits."""
        if self._closed:
            work.fail(self._refusal(self._closed))
            return
        self._works += 1
        work.id = self._works
        work.holder = None
        self.queue.put(work)
        self.pump_soon()
        if self._sweeping is None:
            self._sweep_later()

    def cancel(self, work: Work) -> None:
        """Nobody waits for this call any more; a run that is under way for it alone ends."""
        work.done.cancel()
        if work.holder:
            work.holder.withdraw(work)

    def pump_soon(self) -> None:
        """Send what can be sent, together with what else comes in this turn of the loop."""
        if self._pumping is None and not self._closed:
            self._pumping = asyncio.get_running_loop().call_soon(self._pump)

    def answered(self, instance: Instance, flight: Flight, message: wire.Answers) -> None:
        """An instance is done with a batch."""
        works = flight.works
        asked = works[0].id != NOBODYS  # what a version that is tried took says nothing
        if asked and not any(answer.fault for answer in message.answers):
            rows, took_s = sum(work.rows for work in works), message.ended_s - message.began_s
            self.batches.costs[works[0].model].measured(took_s, rows, len(works))
        for work, answer in zip(works, message.answers, strict=True):
            if answer.fault and work.holder is instance:
                self._fault(instance, work, answer)
        if asked:
            self._ledger.answered(works, message)
        if not instance.flights:
            self.seat.over(instance)
        if len(self.queue) or instance.flights or len(self._serving()) > 1:
            self.pump_soon()

    def lost(self, instance: Instance, begun: list[Work], waiting: list[Work], cause: str) -> None:
        """An instance died of, or with, the calls it had begun; others waited in it."""
        self.seat.over(instance)
        self.faults.ended(instance, cause)
        for work in (*begun, *waiting):
            if work.done.done() or work.holder is not instance:
                continue
            work.holder = None
            if work in begun:
                work.tries += 1
                work.alone = True
            if work.tries and (work.once or work.tries >= TRIES_MAX):
                work.fail(CallLost(f"domain {self._name} was lost during a call: {cause}"))
            elif self._closed:
                work.fail(self._refusal(self._closed))
            elif not self.faults.elsewhere(work):
                self.queue.put(work)
        if not self._closed:
            self.pump_soon()

    def refuse(self, why: str, retry_s: float) -> None:
        """Give back all that waits."""
        for work in list(self.queue.all()):
            work.fail(self._refusal(why, retry_s))

    def close(self, why: str) -> None:
        """Give back all that waits, and what comes back of dying instances from now on."""
        self._closed = why
        self.seat.leave()
        self.refuse(why, 1.0)
        for handle in (self._pumping, self._sweeping, self._gathering):
            if handle:
                handle.cancel()

    @property
    def closed(self) -> bool:
        """Whether nothing is accepted any more."""
        return bool(self._closed)

    def _refusal(self, why: str, retry_s: float = 1.0) -> BusyError:
        return BusyError(f"domain {self._name}: {why}", "try again later", retry_s)

    def _pump(self) -> None:
        self._pumping = None
        now_s = self._clock.monotonic()
        serving = self._serving()
        while (instance := self._free(serving)) is not None:
            head = self.queue.head(now_s)
            if head is None:
                self._steal(instance, serving)
                return
            if not self._served(head, instance):
                continue
            if head.alone and instance.flights:
                return
            if self._gathers(head, instance, now_s):
                return
            turn_s = self.seat.turn(_ep(instance, head), ahead=bool(instance.flights))
            if not turn_s:  # it is another's; pumped again when it is over
                return
            most_s = min(turn_s, self._settings.call_timeout_s / 2)
            idle = sum(not one.flights for one in serving)
            works = self.batches.take(head, instance, most_s, idle)
            self._send(instance, works)

    def _want(self) -> Want | None:
        """What it would send to the GPU now, if it might."""
        now_s = self._clock.monotonic()
        head, instance = self.queue.head(now_s), self._free(self._serving())
        if not (head and instance) or instance.flights or head.model not in instance.loaded:
            return None
        if self._gathers(head, instance, now_s):
            return None
        return Want(head.klass, head.deadline_s) if self.seat.shares(_ep(instance, head)) else None

    def rows_in_time(self, model: str, loaded: wire.Loaded) -> int:
        """How many rows can go together without a doubt that their process hangs."""
        return self.batches.rows(model, self._settings.call_timeout_s / 2, loaded)

    def _served(self, head: Work, instance: Instance) -> bool:
        """Whether the version that `head` asks for is there still; if not, it is given back."""
        label = instance.labels.get(head.model)
        if label is not None and head.label in (None, label):
            return True
        what = f"{label} serves now" if label else "it was unloaded"
        for work in self.queue.take(head, ROWS_ANY, ROWS_ANY):
            error = f"model {work.model}: while the call waited, its version went: {what}"
            work.fail(NotThere(error, "holdfast models ls"))
        return False

    def _send(self, instance: Instance, works: list[Work]) -> None:
        for work in works:
            work.holder = instance
        instance.send(works, self.batches.cost_s(works))
        self.seat.began(_ep(instance, works[0]), instance, works[0].klass)

    def _free(self, serving: list[Instance]) -> Instance | None:
        """The instance that has least to do, if it may get more."""
        found = None
        for instance in serving:
            if not instance.flights:
                return instance
            alone = next(iter(instance.flights.values())).works[0].alone
            room = len(instance.flights) < AHEAD_MAX and instance.cost_s <= AHEAD_S
            may = room and not alone
            if may and (found is None or instance.cost_s < found.cost_s):
                found = instance
        return found

    def _gathers(self, head: Work, instance: Instance, now_s: float) -> bool:
        """Whether `head` still waits for company; then a timer goes on."""
        left_s = self.batches.company_s(head, now_s)
        if not left_s or not self.batches.joins(head, instance):
            return False
        if self._gathering is None:
            self._gathering = asyncio.get_running_loop().call_later(left_s, self._gathered)
        return True

    def _gathered(self) -> None:
        self._gathering = None
        self._pump()

    def _steal(self, idle: Instance, serving: list[Instance]) -> None:
        """Have `idle` do what another has not begun."""
        if idle.flights:
            return
        for victim in serving:
            if len(victim.flights) < AHEAD_MAX:
                continue
            works = list(victim.flights.values())[-1].works
            if any(work.once or work.done.done() or work.holder is not victim for work in works):
                continue
            for work in works:
                victim.withdraw(work)
            self._send(idle, works)
            return

    def _fault(self, instance: Instance, work: Work, answer: wire.Answer) -> None:
        """The instance that was given a call last has no answer to it."""
        match answer.fault:
            case "refused":
                hint = f"`holdfast models verify {work.model}` shows what it takes"
                work.fail(RequestError(answer.message, hint))
            case "failed" if not self.faults.failed(instance, work, answer.message):
                work.fail(RunError(f"model {work.model}: {answer.message}"))
            case "expired":
                work.fail(self._late())
            case "withdrawn" if work.once:  # it is no thief's: made, and left out of a full message
                error = f"model {work.model}: its answer had no room beside those it came with"
                work.fail(RunError(error, "lower the domain's batch_max, or ask for less at once"))
            case "withdrawn" if not work.done.done():  # by a theft, and the thief died
                work.holder = None
                if not self.faults.elsewhere(work):
                    self.queue.put(work)

    def _late(self) -> LateError:
        return LateError(
            f"domain {self._name}: the deadline passed before there was an answer",
            "allow more time, or ask for less at once",
        )

    def _sweep_later(self) -> None:
        loop = asyncio.get_running_loop()
        self._sweeping = loop.call_later(SWEEP_S, self._sweep)

    def _sweep(self) -> None:
        """Tell whoever waited too long. Runs while there is anything."""
        self._sweeping = None
        now_s = self._clock.monotonic()
        for work in self.queue.drop(now_s):
            work.fail(self._late())
        if busy := len(self.queue) > 0:
            self.pump_soon()  # a turn of the GPU may have lapsed
        for instance in self._present():
            for flight in instance.flights.values():
                busy = True
                for work in flight.works:
                    if work.deadline_s <= now_s and not work.done.done():
                        work.fail(self._late())
                        (work.holder or instance).withdraw(work)
        if busy:
            self._sweep_later()

    def _wait_s(self) -> float:
        """When what waits will be done, about."""
        return max(0.1, round(self.batches.waiting_s() / max(1, len(self._serving())), 2))


def _ep(instance: Instance, work: Work) -> str:
    """The execution provider on which it would run there."""
    return instance.loaded[work.model].ep

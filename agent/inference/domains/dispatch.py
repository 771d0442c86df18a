"""From the queue to the instances: what is sent when, to whom, together with what.

An idle instance gets the next batch at once. A busy one gets one more ahead, so that it need not
wait for us, if all it has is cheap (AHEAD_S): what is costly waits here, where something more
urgent can still pass it. Should an instance run dry while another has a batch that it has not
begun, it gets that one too; the first answer counts.

A call whose worker died is made once more, alone; if that one dies too, it is given back.
"""

import asyncio
from collections.abc import Callable, Mapping
from typing import NamedTuple, Protocol

from agent.clock import Clock
from agent.config import Domain as Settings
from agent.errors import BusyError, CallLost, LateError, RequestError, RunError
from agent.inference import wire
from agent.inference.domains.costs import Costs
from agent.inference.domains.instance import Flight, Instance
from agent.inference.domains.lease import UNBOUNDED_S, Lease, Want
from agent.inference.domains.queue import Queue
from agent.inference.domains.work import Work

AHEAD_S = 0.008
AHEAD_MAX = 2  # batches under way in one instance
TRIES_MAX = 2  # workers that one call may cost
SWEEP_S = 0.02  # how late a caller may learn that its deadline has passed
AGE_S = 1.0


class Kind(NamedTuple):
    """What differs between engines."""

    batch_max: int
    batch_delay_s: float
    queue_max: int
    always_joins: bool  # batches pay, whatever was measured


# A call of speech costs about what a hop costs to compute: live streams wait for each other
# (python -m bench.streams), and each of them has one call at a time.
KINDS = {"onnx": Kind(10, 0.0, 256, False), "speech": Kind(64, 0.010, 2048, True)}


class Ledger(Protocol):
    """Who is told of what has been done; figures.py."""

    def answered(self, works: list[Work], message: wire.Answers) -> None:
        """A batch is done."""


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
        self.costs: dict[str, Costs] = {}
        self._name = name
        self._settings = settings
        self._kind = kind
        self._serving = serving
        self._present = present
        self._clock = clock
        self._ledger = ledger
        self.seat = lease.seat(settings, self._want, self.pump_soon)
        self._works = 0
        self._pumping: asyncio.Handle | None = None
        self._sweeping: asyncio.TimerHandle | None = None
        self._gathering: asyncio.TimerHandle | None = None

    def apply(self, settings: Settings, kind: Kind) -> None:
        """Other settings hold from now on."""
        self._settings, self._kind = settings, kind
        self.queue.calls_max = kind.queue_max
        self.seat.apply(settings)

    def submit(self, work: Work) -> None:
        """Accept a call, which is answered then, whatever happens. Raises BusyError."""
        if self.queue.full:
            raise BusyError(
                f"domain {self._name}: {len(self.queue)} calls wait already",
                "try again later, or raise its queue_max or instances",
                self._wait_s(),
            )
        self._works += 1
        work.id = self._works
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
        if self._pumping is None:
            self._pumping = asyncio.get_running_loop().call_soon(self._pump)

    def answered(self, instance: Instance, flight: Flight, message: wire.Answers) -> None:
        """An instance is done with a batch."""
        works = flight.works
        rows = sum(work.rows for work in works)
        self._costs(works[0].model).measured(message.ended_s - message.began_s, rows, len(works))
        for work, answer in zip(works, message.answers, strict=True):
            if answer.fault and work.holder is instance:
                self._fault(work, answer)
        self._ledger.answered(works, message)
        if not instance.flights:
            self.seat.over(instance)
        if len(self.queue) or instance.flights or len(self._serving()) > 1:
            self.pump_soon()

    def lost(self, instance: Instance, works: list[Work], cause: str) -> None:
        """An instance died of, or with, these calls."""
        self.seat.over(instance)
        for work in works:
            if work.done.done() or work.holder is not instance:
                continue
            work.tries += 1
            work.holder = None
            if work.once or work.tries >= TRIES_MAX:
                work.fail(CallLost(f"domain {self._name} was lost during a call: {cause}"))
            else:
                work.alone = True
                self.queue.put(work)
        self.pump_soon()

    def close(self, why: str) -> None:
        """Give back all that waits."""
        self.seat.leave()
        for work in list(self.queue.all()):
            work.fail(BusyError(f"domain {self._name}: {why}", "try again later"))
        for handle in (self._pumping, self._sweeping, self._gathering):
            if handle:
                handle.cancel()

    def _pump(self) -> None:
        self._pumping = None
        now_s = self._clock.monotonic()
        serving = self._serving()
        while (instance := self._free(serving)) is not None:
            head = self.queue.head(now_s)
            if head is None:
                self._steal(instance, serving)
                return
            if self._gathers(head, now_s):
                return
            turn_s = self.seat.turn(_ep(instance, head), ahead=bool(instance.flights))
            if not turn_s:  # it is another's; pumped again when it is over
                return
            rows_max, calls_max = self._together(head, instance)
            rows_max = min(rows_max, self._rows(head, turn_s))
            works = self.queue.take(head, rows_max, calls_max)
            self._send(instance, works)

    def _want(self) -> Want | None:
        """What it would send to the GPU now, if it might."""
        now_s = self._clock.monotonic()
        head, instance = self.queue.head(now_s), self._free(self._serving())
        if not (head and instance) or instance.flights or self._gathers(head, now_s):
            return None
        return Want(head.klass, head.deadline_s) if self.seat.shares(_ep(instance, head)) else None

    def _rows(self, head: Work, turn_s: float) -> int:
        """How many rows such as those of `head` are done in so long a time, about."""
        row_s = self._costs(head.model).row_s()
        return max(1, int(turn_s / row_s)) if row_s and turn_s < UNBOUNDED_S else 1 << 30

    def _send(self, instance: Instance, works: list[Work]) -> None:
        for work in works:
            work.holder = instance
        instance.send(works, self._cost_s(works))
        self.seat.began(_ep(instance, works[0]), instance, works[0].klass)

    def _free(self, serving: list[Instance]) -> Instance | None:
        """The instance that has least to do, if it may get more."""
        found = None
        for instance in serving:
            if not instance.flights:
                return instance
            may = len(instance.flights) < AHEAD_MAX and instance.cost_s <= AHEAD_S
            if may and (found is None or instance.cost_s < found.cost_s):
                found = instance
        return found

    def _together(self, head: Work, instance: Instance) -> tuple[int, int]:
        """How many rows, and how many calls, may go with `head`."""
        kind = self._kind
        if kind.always_joins:
            return kind.batch_max, kind.batch_max
        costs = self._costs(head.model)
        if instance.loaded[head.model].batching and costs.pays():
            return kind.batch_max, kind.batch_max
        row_s = costs.row_s()  # one after the other, as long as that is soon done
        calls = 1 if row_s is None else int(AHEAD_S / 8 / max(row_s * head.rows, 1e-6))
        return 1 << 30, min(max(1, calls), kind.batch_max)

    def _gathers(self, head: Work, now_s: float) -> bool:
        """Whether `head` still waits for company; then a timer goes on."""
        if not head.gathers or self._kind.batch_delay_s <= 0:
            return False
        left_s = head.times.arrived_s + self._kind.batch_delay_s - now_s
        if left_s <= 0 or self.queue.rows(head) >= self._kind.batch_max:
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

    def _fault(self, work: Work, answer: wire.Answer) -> None:
        match answer.fault:
            case "refused":
                work.fail(RequestError(answer.message, "see the model's metadata"))
            case "failed":
                work.fail(RunError(f"model {work.model}: {answer.message}"))
            case "expired":
                work.fail(self._late())

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
                        instance.withdraw(work)
        if busy:
            self._sweep_later()

    def _costs(self, model: str) -> Costs:
        return self.costs.setdefault(model, Costs())

    def _cost_s(self, works: list[Work]) -> float:
        """As estimated; what is not known yet counts as costly."""
        row_s = self._costs(works[0].model).row_s()
        return 1.0 if row_s is None else row_s * sum(work.rows for work in works)

    def _wait_s(self) -> float:
        """When there will be room, about."""
        known: Mapping[str, Costs] = self.costs
        row_s = max((c.row_s() or 0.0 for c in known.values()), default=0.0)
        return max(0.1, round(row_s * len(self.queue) / max(1, len(self._serving())), 2))


def _ep(instance: Instance, work: Work) -> str:
    """The execution provider on which it would run there."""
    return instance.loaded[work.model].ep

"""What a domain has done: counts and times by model, for the metrics, and the last timelines."""

from asyncio import Future
from bisect import bisect_left
from collections import deque
from typing import Any, NamedTuple

from agent.errors import BusyError, CallLost, LateError, RequestError, RunError
from agent.inference import wire
from agent.inference.domains.tallies import Tallies
from agent.inference.domains.work import Class, Result, Times, Work
from agent.inference.shown import TraceShown, Urgency

SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
CALLS = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0)
TRACES_MAX = 256
URGENCY: dict[Class, Urgency] = {
    Class.REALTIME: "realtime",
    Class.INTERACTIVE: "interactive",
    Class.BATCH: "batch",
}
OUTCOMES: dict[type, str] = {
    type(None): "ok",
    RequestError: "refused",
    RunError: "failed",
    LateError: "late",
    CallLost: "lost",
    BusyError: "busy",
}


class Histogram:
    """Counts by upper bound; the last count is of what is above all of them."""

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.sum = 0.0

    def add(self, value: float, times: int = 1) -> None:
        """One more measurement, so many times."""
        self.counts[bisect_left(self.bounds, value)] += times
        self.sum += value * times


class ModelFigures:
    """Of one model."""

    def __init__(self) -> None:
        self.queue_s = Histogram(SECONDS)
        self.compute_s = Histogram(SECONDS)  # of batches
        self.batch_calls = Histogram(CALLS)
        self.outcomes: dict[str, int] = {}  # calls, by what became of them
        self.cache_hits = self.cache_misses = 0
        self.tallies = Tallies()


class Trace(NamedTuple):
    """The way of one call."""

    id: int
    model: str
    klass: Class
    rows: int
    batched: int
    tries: int
    pid: int
    fault: str
    times: Times

    def document(self) -> TraceShown:
        """For people and programs: what took how long, in milliseconds; None: it did not come."""
        t = self.times
        return TraceShown(
            *(self.id, self.model, self.rows, self.batched, self.tries),
            *(URGENCY[self.klass], self.pid, self.fault or None),
            queued_ms=_ms(t.arrived_s, t.sent_s),
            sent_ms=_ms(t.sent_s, t.received_s),
            taken_apart_ms=_ms(t.received_s, t.began_s),
            computed_ms=_ms(t.began_s, t.ended_s),
            returned_ms=_ms(t.ended_s, t.answered_s),
            total_ms=_ms(t.arrived_s, t.answered_s),
        )


def _ms(begin_s: float, end_s: float) -> float | None:
    return round((end_s - begin_s) * 1000, 3) if begin_s and end_s else None


class Figures:
    """Of one domain."""

    def __init__(self) -> None:
        self.models: dict[str, ModelFigures] = {}
        self.done = 0  # calls that have what they will ever have
        self._last: deque[tuple[Any, ...]] = deque(maxlen=TRACES_MAX)

    def answered(self, works: list[Work], message: wire.Answers) -> None:
        """A batch is done; what proves a fresh process is nobody's call."""
        if not works[0].id:
            return
        figures = self._of(works[0].model)
        queue_s = figures.queue_s
        for work, answer in zip(works, message.answers, strict=True):
            queue_s.add(work.times.sent_s - work.times.arrived_s)
            self._keep(work, answer.fault)
        figures.compute_s.add(message.ended_s - message.began_s)
        figures.batch_calls.add(len(works))
        figures.tallies.answered(works, message)

    def ended(self, work: Work, done: Future[Result]) -> None:
        """A call has what it will ever have."""
        self.done += 1
        error = None if done.cancelled() else done.exception()
        outcome = "withdrawn" if done.cancelled() else OUTCOMES.get(type(error), "lost")
        figures = self._of(work.model)
        figures.outcomes[outcome] = figures.outcomes.get(outcome, 0) + 1
        figures.tallies.ended(work, outcome)
        if outcome == "lost" or (outcome == "late" and not work.times.sent_s):  # nobody answers
            work.times.answered_s = work.deadline_s if outcome == "late" else 0.0
            self._keep(work, outcome)

    def _keep(self, work: Work, fault: str) -> None:
        """What stays of a call: not its tensors. A Trace is made of it when somebody looks."""
        kept = (work.id, work.model, work.klass, work.rows, work.batched, work.tries)
        self._last.append((*kept, work.pid, fault, work.times))

    def counted(self, model: str, outcome: str) -> None:
        """One more call came to this."""
        outcomes = self._of(model).outcomes
        outcomes[outcome] = outcomes.get(outcome, 0) + 1

    def looked_up(self, model: str, rows: int, took_s: float, now_s: float, *, known: bool) -> None:
        """The answer to a call of so many rows was looked for in the cache."""
        figures = self._of(model)
        figures.tallies.looked_up(rows, took_s, now_s, known=known)
        figures.cache_hits += known
        figures.cache_misses += not known

    def _of(self, model: str) -> ModelFigures:
        figures = self.models.get(model)
        if figures is None:
            figures = self.models[model] = ModelFigures()
        return figures

    def traces(self) -> list[Trace]:
        """The last calls, the newest first."""
        return [Trace(*one) for one in reversed(self._last)]

"""How often and how long: what of a model's calls the statistics of the protocol add up.

They are of a model's name, since the agent began: another version of it counts on.

Limits: BATCH_SIZES_MAX sizes of a batch are told apart; a further one is only in the sums.
"""

from typing import NamedTuple

from agent.inference import wire
from agent.inference.domains.work import Times, Work

BATCH_SIZES_MAX = 64


class Tally:
    """So many, and the seconds of all of them."""

    __slots__ = ("count", "total_s")

    def __init__(self) -> None:
        self.count = 0
        self.total_s = 0.0

    def add(self, seconds: float) -> None:
        """One more."""
        self.count += 1
        self.total_s += seconds


class Spans(NamedTuple):
    """The way of a call through its process: to the run, the run, and back."""

    before: Tally
    run: Tally
    after: Tally

    def add(self, times: Times) -> None:
        """One more."""
        self.before.add(times.began_s - times.sent_s)
        self.run.add(times.ended_s - times.began_s)
        self.after.add(times.answered_s - times.ended_s)


class Tallies:
    """Of one model. `rows` are those of calls that went well; `last_s` is of CLOCK_BOOTTIME."""

    def __init__(self) -> None:
        self.rows = self.runs = 0
        self.last_s = 0.0
        self.good, self.failed, self.queued = Tally(), Tally(), Tally()
        self.known, self.unknown = Tally(), Tally()  # to the cache
        self.spans = Spans(Tally(), Tally(), Tally())
        self.by_rows: dict[int, Spans] = {}  # of a batch

    def answered(self, works: list[Work], message: wire.Answers) -> None:
        """A batch is done."""
        self.runs += 1
        rows = sum(work.rows for work in works)
        spans = self.by_rows.get(rows)
        if spans is None:
            if len(self.by_rows) == BATCH_SIZES_MAX:
                return
            spans = self.by_rows[rows] = Spans(Tally(), Tally(), Tally())
        spans.add(works[0].times)

    def ended(self, work: Work, outcome: str) -> None:
        """A call has what it will ever have."""
        times = work.times
        if outcome == "ok":
            self.rows += work.rows
            self.last_s = times.answered_s
            self.good.add(times.answered_s - times.arrived_s)
            self.queued.add(times.sent_s - times.arrived_s)
            self.spans.add(times)
        elif outcome != "withdrawn":
            end_s = times.answered_s or (work.deadline_s if outcome == "late" else times.sent_s)
            self.failed.add(max(0.0, end_s - times.arrived_s))

    def looked_up(self, rows: int, took_s: float, now_s: float, *, known: bool) -> None:
        """The answer to a call was looked for in the cache; what is found there went well."""
        (self.known if known else self.unknown).add(took_s)
        if known:
            self.good.add(took_s)
            self.rows += rows
            self.last_s = now_s

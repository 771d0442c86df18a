"""What goes together: how large a batch is, and whether a call waits for company.

Calls that can be joined are, where that was measured to pay (costs.py). Others may go in one
message all the same, to be made one after the other, as long as that is soon done. What several
idle instances could do at once is dealt out between them.
"""

from collections import defaultdict
from typing import NamedTuple

from agent.inference import wire
from agent.inference.domains.costs import Costs
from agent.inference.domains.instance import Instance
from agent.inference.domains.queue import Queue
from agent.inference.domains.work import Work

TURN_S = 0.001  # of calls in one message that are made one after the other
ROWS_ANY = 1 << 30


class Kind(NamedTuple):
    """What differs between engines."""

    batch_max: int
    batch_delay_s: float
    queue_max: int
    always_joins: bool  # batches pay, whatever was measured


# A call of speech costs about what a hop costs to compute: live streams wait for each other
# (python -m bench.streams), and each of them has one call at a time.
KINDS = {"onnx": Kind(10, 0.0, 256, False), "speech": Kind(64, 0.010, 2048, True)}


class Batches:
    """Puts together what waits in the queue of one domain."""

    def __init__(self, kind: Kind, queue: Queue) -> None:
        self.kind = kind
        self.costs = defaultdict[str, Costs](Costs)  # by model
        self._queue = queue

    def joins(self, head: Work, instance: Instance) -> bool:
        """Whether calls as `head` gain by being made together."""
        pays = instance.loaded[head.model].batching and self.costs[head.model].pays()
        return self.kind.always_joins or pays

    def company_s(self, head: Work, now_s: float) -> float:
        """For how long a call that is joined still waits for others; none: it goes."""
        left_s = head.times.arrived_s + self.kind.batch_delay_s - now_s
        if not head.gathers or left_s <= 0 or self._queue.rows(head) >= self.kind.batch_max:
            return 0.0
        return left_s

    def take(self, head: Work, instance: Instance, most_s: float, idle: int) -> list[Work]:
        """The next batch for `instance`: of `most_s` at most, about; so many instances are idle."""
        rows_max = self.rows(head.model, most_s, instance.loaded[head.model])
        if self.joins(head, instance):
            rows_max = min(rows_max, self.kind.batch_max)
            return self._queue.take(head, rows_max, self._share(head, idle))
        return self._queue.take(head, rows_max, self._in_turn(head, instance))

    def rows(self, model: str, most_s: float, loaded: wire.Loaded) -> int:
        """How many rows are done in so long a time, about: as measured, at least at its warm-up."""
        row_s = self.costs[model].row_s() or loaded.warm_up_s
        return max(1, int(most_s / row_s)) if row_s else ROWS_ANY

    def cost_s(self, works: list[Work]) -> float:
        """As estimated; what is not known yet counts as costly, and what has to be alone."""
        row_s = self.costs[works[0].model].row_s()
        if row_s is None or works[0].alone:
            return 1.0
        return row_s * max(1, sum(work.rows for work in works))

    def waiting_s(self) -> float:
        """What waits, in seconds of one instance's time."""
        waiting = self._queue.by_model().items()
        return sum((self.costs[model].row_s() or 0.0) * calls for model, calls in waiting)

    def _in_turn(self, head: Work, instance: Instance) -> int:
        """How many calls that are made one after the other may go at once: what is soon done."""
        row_s = self.costs[head.model].row_s()
        if row_s is None or instance.loaded[head.model].batching:  # they would be joined
            return 1
        calls = int(TURN_S / max(row_s * head.rows, 1e-6))
        return min(max(1, calls), self.kind.batch_max)

    def _share(self, head: Work, idle: int) -> int:
        """How many calls go together: where several instances are idle, each gets its part."""
        if idle <= 1 or self.kind.always_joins:
            return self.kind.batch_max
        return -(-self._queue.calls(head) // idle)

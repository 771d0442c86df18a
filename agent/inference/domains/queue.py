"""What waits in a domain, and what goes next.

The most urgent class goes first; in it, what has to be done first. Nothing starves: a call that has
waited `age_s` counts as one class more urgent, and after twice that as two; and what waits longer
than its own deadline would order, PATIENCE_S, goes before what came later.

Limits: `calls_max`; the caller is told at once when it is reached. What leaves together has no more
than BODIES_BYTES_MAX and HEADS_BYTES_MAX, so that it is a message that wire.py lets through.
"""

import heapq
from collections import Counter
from collections.abc import Container, Hashable, Iterator

from agent.inference.domains.work import Class, Work

PATIENCE_S = 5.0
BODIES_BYTES_MAX = 64 << 20
HEADS_BYTES_MAX = 1 << 20

Line = list[tuple[float, int, Work]]  # a heap: due, arrival, call


class Queue:
    """Waiting calls; those of one model and key can leave together."""

    def __init__(self, calls_max: int, age_s: float) -> None:
        self.calls_max = calls_max
        self._age_s = age_s
        self._lines: dict[tuple[Class, str, Hashable], Line] = {}
        self._arrivals = 0
        self._length = 0

    def __len__(self) -> int:
        """Calls that wait, those too that nobody waits for any more."""
        return self._length

    @property
    def full(self) -> bool:
        """Whether no more is accepted."""
        return self._length >= self.calls_max

    def put(self, work: Work) -> None:
        """One more; what is given back after its worker died keeps its place by its arrival."""
        self._arrivals += 1
        due_s = min(work.deadline_s, work.times.arrived_s + PATIENCE_S)
        line = self._lines.setdefault((work.klass, work.model, work.key), [])
        heapq.heappush(line, (due_s, self._arrivals, work))
        self._length += 1

    def head(self, now_s: float) -> Work | None:
        """The call that goes next, left where it is."""
        found: tuple[int, float, int] | None = None
        head = None
        for key in list(self._lines):
            self._clear(key)
            line = self._lines.get(key)
            if line is None:
                continue
            due_s, arrival, work = line[0]
            rank = (self._urgency(work, now_s), due_s, arrival)
            if found is None or rank < found:
                found, head = rank, work
        return head

    def take(self, head: Work, rows_max: int, calls_max: int) -> list[Work]:
        """`head`, and as many of its line as go with it: so many rows, so many calls at most."""
        key = (head.klass, head.model, head.key)
        batch: list[Work] = []
        rows = body_bytes = head_bytes = 0
        while (line := self._lines.get(key)) is not None:
            work = line[0][2]
            rows += max(1, work.rows)
            body_bytes += work.size_bytes
            head_bytes += len(work.head)
            fits = rows <= rows_max and len(batch) < calls_max and not (work.alone or head.alone)
            if batch and not (
                fits and body_bytes <= BODIES_BYTES_MAX and head_bytes <= HEADS_BYTES_MAX
            ):
                break
            self._pop(key)
            batch.append(work)
            self._clear(key)
        return batch

    def rows(self, head: Work) -> int:
        """Rows that wait in the line of `head`."""
        return sum(work.rows for _, _, work in self._lines[head.klass, head.model, head.key])

    def calls(self, head: Work) -> int:
        """Calls that wait in the line of `head`."""
        return len(self._lines[head.klass, head.model, head.key])

    def by_model(self) -> Counter[str]:
        """How many calls wait, by model."""
        found = Counter[str]()
        for (_, model, _), line in self._lines.items():
            found[model] += len(line)
        return found

    def drop(self, now_s: float) -> list[Work]:
        """Take out what is past its deadline, for the caller to be told."""
        late: list[Work] = []
        for key in list(self._lines):
            line = self._lines[key]
            kept = [entry for entry in line if not entry[2].done.done()]
            due = [entry for entry in kept if entry[2].deadline_s > now_s]
            late += [work for _, _, work in kept if work.deadline_s <= now_s]
            if len(due) != len(line):
                self._length -= len(line) - len(due)
                heapq.heapify(due)
                if due:
                    self._lines[key] = due
                else:
                    del self._lines[key]
        return late

    def leave(self, models: Container[str] | None = None) -> list[Work]:
        """Take out all calls to these models (None: to any) that somebody waits for."""
        left: list[Work] = []
        for key in [key for key in self._lines if models is None or key[1] in models]:
            line = self._lines.pop(key)
            self._length -= len(line)
            left += [work for _, _, work in sorted(line) if not work.done.done()]
        return left

    def all(self) -> Iterator[Work]:
        """Whatever waits, in no order."""
        for line in self._lines.values():
            yield from (work for _, _, work in line)

    def _urgency(self, work: Work, now_s: float) -> int:
        waited = max(0.0, now_s - work.times.arrived_s)
        return max(0, work.klass - int(waited / self._age_s))

    def _clear(self, key: tuple[Class, str, Hashable]) -> None:
        """Let go of calls at the head that nobody waits for."""
        line = self._lines.get(key)
        while line and line[0][2].done.done():
            self._pop(key)
            line = self._lines.get(key)

    def _pop(self, key: tuple[Class, str, Hashable]) -> None:
        line = self._lines[key]
        heapq.heappop(line)
        self._length -= 1
        if not line:
            del self._lines[key]

"""The queue against a plain list, on a clock that the test moves."""

import asyncio
import itertools
import os
from typing import Any

import hypothesis.strategies as st
import msgspec
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from agent.inference.domains.queue import (
    BODIES_BYTES_MAX,
    HEADS_BYTES_MAX,
    PATIENCE_S,
    Queue,
)
from agent.inference.domains.work import Class, Work

AGE_S = 1.0
CALLS_MAX = 12
LONG = bool(os.environ.get("HOLDFAST_LONG"))


async def made(now_s: float = 0.0, timeout_s: float = 30.0, **more: Any) -> Work:
    """A call; without a loop there is none."""
    more = {"klass": Class.INTERACTIVE, "size_bytes": 1, "head": b"\xc0", **more}
    return Work(
        *(more.pop("model", "m"), msgspec.Raw(more.pop("head")), [b"x"]),
        now_s=now_s,
        timeout_s=timeout_s,
        **more,
    )


class Waiting(RuleBasedStateMachine):
    """What the queue does, and what a list of all that waits says it should have done."""

    @initialize()
    def begin(self) -> None:
        self.loop = asyncio.new_event_loop()
        self.queue = Queue(CALLS_MAX, AGE_S)
        self.list: list[tuple[int, Work]] = []  # in order of arrival
        self.arrivals = itertools.count()
        self.now_s = 100.0

    def teardown(self) -> None:
        if hasattr(self, "loop"):
            self.loop.close()

    @rule(
        klass=st.sampled_from(Class),
        model=st.sampled_from("ab"),
        key=st.sampled_from([None, 1]),
        rows=st.integers(0, 5),
        timeout_s=st.sampled_from([0.3, 2.0, 4.0, 30.0]),
        alone=st.booleans(),
    )
    def put(self, timeout_s: float, **more: Any) -> None:
        assert self.queue.full == (len(self.queue) >= CALLS_MAX)
        work = self.loop.run_until_complete(made(self.now_s, timeout_s, **more))
        self.queue.put(work)
        self.list.append((next(self.arrivals), work))

    @rule(seconds=st.sampled_from([0.01, 0.4, 1.1, 6.0]))
    def pass_time(self, seconds: float) -> None:
        self.now_s += seconds

    @precondition(lambda self: self.list)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        data.draw(st.sampled_from(self.list))[1].done.cancel()

    @rule()
    def drop(self) -> None:
        late = self.queue.drop(self.now_s)
        due = [w for _, w in self.list if w.deadline_s <= self.now_s and not w.done.done()]
        assert sorted(map(id, late)) == sorted(map(id, due))
        self.list = [
            (i, w) for i, w in self.list if w.deadline_s > self.now_s and not w.done.done()
        ]
        assert len(self.queue) == len(self.list), "those that nobody waits for are gone too"

    @rule(rows_max=st.integers(1, 8), calls_max=st.integers(1, 4))
    def take(self, rows_max: int, calls_max: int) -> None:
        head = self.queue.head(self.now_s)
        self.list = [(i, work) for i, work in self.list if not work.done.done()]
        assert (head is None) == (not self.list)
        if head is None:
            assert len(self.queue) == 0
            return
        lines: dict[Any, list[tuple[float, int, Work]]] = {}
        for i, work in self.list:
            due_s = min(work.deadline_s, work.times.arrived_s + PATIENCE_S)
            lines.setdefault((work.klass, work.model, work.key), []).append((due_s, i, work))
        firsts = [min(line, key=lambda one: one[:2]) for line in lines.values()]
        assert head is min(firsts, key=lambda one: (self.urgency(one[2]), *one[:2]))[2]
        batch = self.queue.take(head, rows_max, calls_max)
        line = sorted(lines[head.klass, head.model, head.key], key=lambda one: one[:2])
        assert batch == [work for _, _, work in line[: len(batch)]], "in the order of the line"
        assert len(batch) == 1 or sum(work.rows for work in batch) <= rows_max
        assert 1 <= len(batch) <= calls_max
        assert len(batch) == 1 or not any(work.alone for work in batch)
        if len(batch) < len(line):
            more = line[len(batch)][2]
            full = len(batch) == calls_max or sum(w.rows for w in [*batch, more]) > rows_max
            assert full or more.alone or head.alone, "nobody stays behind without a reason"
        self.list = [(i, work) for i, work in self.list if work not in batch]

    @invariant()
    def adds_up(self) -> None:
        if not hasattr(self, "queue"):
            return
        waiting = list(self.queue.all())
        assert len(waiting) == len(self.queue) == sum(self.queue.by_model().values())
        alive = {id(work) for work in waiting if not work.done.done()}
        assert alive == {id(work) for _, work in self.list if not work.done.done()}

    def urgency(self, work: Work) -> int:
        return max(0, work.klass - int((self.now_s - work.times.arrived_s) / AGE_S))


Waiting.TestCase.settings = settings(
    max_examples=2000 if LONG else 60, stateful_step_count=40, deadline=None
)
TestWaiting = Waiting.TestCase


async def test_the_most_urgent_class_goes_first_and_in_it_what_is_due_first() -> None:
    queue = Queue(10, AGE_S)
    picture = await made(0.0, klass=Class.BATCH, model="p")
    talk = await made(0.1, klass=Class.INTERACTIVE, model="t")
    late, soon = [await made(0.2, s, klass=Class.REALTIME, model="r") for s in (3.0, 1.0)]
    for work in (picture, talk, late, soon):
        queue.put(work)
    order = []
    while head := queue.head(0.3):
        order += queue.take(head, 1, 1)
    assert order == [soon, late, talk, picture]


async def test_nothing_starves_however_much_that_is_more_urgent_comes() -> None:
    queue = Queue(1000, AGE_S)
    now_s, patient = 0.0, await made(0.0, klass=Class.BATCH, timeout_s=1000.0)
    queue.put(patient)
    while True:
        for _ in range(2):  # more than can be done
            queue.put(await made(now_s, 10.0, klass=Class.REALTIME, model="r"))
        head = queue.head(now_s)
        assert head is not None
        if queue.take(head, 1, 1) == [patient]:
            break
        now_s += 0.05
        assert now_s < PATIENCE_S + 2 * AGE_S


async def test_what_leaves_together_is_a_message_that_the_wire_lets_through() -> None:
    queue = Queue(100, AGE_S)
    for _ in range(3):
        queue.put(await made(size_bytes=BODIES_BYTES_MAX // 2))
    queue.put(await made(size_bytes=2 * BODIES_BYTES_MAX))
    for _ in range(3):
        queue.put(await made(head=bytes(HEADS_BYTES_MAX // 2)))
    sizes = []
    while head := queue.head(0.0):
        sizes.append(len(queue.take(head, 100, 100)))
    assert sizes == [2, 1, 1, 2, 1]

"""Who gets which calls when: the dispatch with instances that do as the test says."""

import asyncio
import itertools
import os
import random
from functools import partial
from typing import Any

import msgspec
import pytest

from agent import config
from agent.errors import BusyError, CallLost, LateError, NotThere, RequestError, RunError
from agent.inference import wire
from agent.inference.domains.batches import Kind
from agent.inference.domains.costs import PROBE_EACH, Costs
from agent.inference.domains.dispatch import AGE_S, TRIES_MAX, Dispatch
from agent.inference.domains.flight import Flight
from agent.inference.domains.lease import Lease
from agent.inference.domains.work import Class, Result, Work
from agent.inference.oip import Bodies

DEADLINE_S = 90.0
SEED = int(os.environ.get("HOLDFAST_SEED", "20261121"))
ROUNDS = 3000 if os.environ.get("HOLDFAST_LONG") else 150
RESULT = Result(msgspec.Raw(b"\xc0"), memoryview(b"y"), "m/1@0", "CPU")


class Clock:
    """Moved by the test."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def monotonic(self) -> float:
        return self.now_s


class Instance:
    """In the place of a process: it answers when it is told to."""

    def __init__(self, house: "House", batching: bool) -> None:
        self.flights: dict[int, Flight] = {}
        self.withdrawn: list[Work] = []
        self.sent: list[list[Work]] = []  # all it ever got
        self.loaded = {name: wire.Loaded("CPU", 0.0, batching=batching) for name in ("m", "n")}
        self.labels = {name: f"{name}/1" for name in self.loaded}
        self._house = house
        self._ids = itertools.count()

    @property
    def cost_s(self) -> float:
        return sum(flight.cost_s for flight in self.flights.values())

    def send(self, works: list[Work], cost_s: float) -> None:
        self.sent.append(works)
        self.flights[next(self._ids)] = Flight(works, cost_s)

    def withdraw(self, work: Work) -> None:
        self.withdrawn.append(work)

    def answer(self, took_s: float = 0.001, fault: str = "", flight: int | None = None) -> None:
        """Its oldest batch, or another, is done; each call has the same fault, if any."""
        i = next(iter(self.flights)) if flight is None else flight
        found = self.flights.pop(i)
        if not fault:
            for work in found.works:
                work.answer(RESULT)
        answers = [wire.Answer(fault=fault, message=fault) for _ in found.works]  # type: ignore
        self._house.dispatch.answered(
            self,  # type: ignore[arg-type]
            found,
            wire.Answers(i, answers, 0.0, 1.0, 1.0 + took_s),
        )

    def die(self) -> None:
        self._house.instances.remove(self)
        begun, *later = [flight.works for flight in self.flights.values()] or [[]]
        waiting = [work for works in later for work in works]
        self.flights.clear()
        lost = self._house.dispatch.lost
        lost(self, begun, waiting, "signal SIGKILL")  # type: ignore[arg-type]


class House:
    """A dispatch, its clock and its instances."""

    def __init__(
        self, instances: int = 1, batching: bool = True, kind: Kind | None = None, **rules: Any
    ) -> None:
        self.clock = Clock()
        self.batching = batching
        self.instances: list[Instance] = []
        kind = kind or Kind(10, 0.0, 256, False)
        kind = kind._replace(queue_max=rules.get("queue_max", kind.queue_max))
        some = [lambda: self.instances] * 2
        settings = config.Domain(models=["m"], **rules)
        lease = Lease(self.clock)  # type: ignore[arg-type]
        parts: Any = (*some, self.clock, self, lease)
        self.dispatch = Dispatch("d", settings, kind, *parts)
        for _ in range(instances):
            self.instances.append(Instance(self, batching))

    def add(self) -> Instance:
        self.instances.append(Instance(self, self.batching))
        self.dispatch.pump_soon()
        return self.instances[-1]

    def answered(self, works: list[Work], message: wire.Answers) -> None:
        """As figures."""

    def ask(self, timeout_s: float = 10.0, **more: Any) -> Work:
        more = {"klass": Class.INTERACTIVE, "size_bytes": 1, "model": "m", **more}
        work = Work(
            *(more.pop("model"), msgspec.Raw(b"\xc0"), [b"x"]),
            now_s=self.clock.now_s,
            timeout_s=timeout_s,
            **more,
        )
        self.dispatch.submit(work)
        return work

    async def turns(self) -> None:
        """Let what is due in the loop be done."""
        for _ in range(4):
            await asyncio.sleep(0)

    async def knows(self, single_s: float, joint_s: float | None = None) -> None:
        """What calls cost has been measured."""
        costs = self.dispatch.batches.costs["m"]
        costs.measured(single_s, 1, 1)
        if joint_s is not None:
            costs.measured(2 * joint_s, 2, 2)


async def error_of(work: Work) -> Exception | None:
    async with asyncio.timeout(DEADLINE_S):
        await asyncio.wait([work.done])
    return work.done.exception()


async def test_what_comes_together_goes_together_up_to_the_limits() -> None:
    house = House()
    first = house.ask()
    await house.turns()
    works = [house.ask() for _ in range(13)] + [house.ask(rows=9), house.ask(rows=2)]
    house.instances[0].answer()
    await house.turns()
    while house.instances[0].flights:
        house.instances[0].answer()
        await house.turns()
    assert [len(batch) for batch in house.instances[0].sent] == [1, 10, 3, 1, 1]
    assert [work for batch in house.instances[0].sent for work in batch] == [first, *works]
    assert all(work.done.result() is RESULT for work in works)


async def test_what_has_to_go_alone_goes_alone() -> None:
    house = House()
    works = [house.ask(alone=i == 2) for i in range(5)]
    await house.turns()
    while house.instances[0].flights:
        house.instances[0].answer()
        await house.turns()
    assert house.instances[0].sent == [works[:2], works[2:3], works[3:]]


async def test_calls_of_other_models_classes_and_keys_do_not_go_together() -> None:
    house = House()
    works = [house.ask(), house.ask(model="n"), house.ask(key=1), house.ask(klass=Class.BATCH)]
    await house.turns()
    while house.instances[0].flights:
        house.instances[0].answer()
        await house.turns()
    assert house.instances[0].sent == [[work] for work in works]


@pytest.mark.parametrize("batching", [True, False])
async def test_calls_that_gain_nothing_together_go_alone(batching: bool) -> None:
    house = House(batching=batching)
    await house.knows(0.010, 0.010)
    for _ in range(5):
        house.ask()
    await house.turns()
    assert [len(batch) for batch in house.instances[0].sent] == [1]
    house.instances[0].answer(0.010)
    await house.turns()
    assert [len(batch) for batch in house.instances[0].sent] == [1, 1]


async def test_whether_batches_pay_is_tried_again_now_and_then() -> None:
    house = House()
    await house.knows(0.010, 0.010)
    for _ in range(PROBE_EACH + 12):
        house.ask()
    await house.turns()
    while house.instances[0].flights:
        house.instances[0].answer(0.010 if len(house.instances[0].sent[-1]) == 1 else 0.1)
        await house.turns()
    sizes = [len(batch) for batch in house.instances[0].sent]
    assert sizes == [1] * PROBE_EACH + [10] + [1] * 2, sizes


async def test_cheap_calls_of_a_model_that_does_not_batch_share_a_message() -> None:
    house = House(batching=False)
    await house.knows(0.0002)
    for _ in range(8):
        house.ask()
    await house.turns()
    assert [len(batch) for batch in house.instances[0].sent] == [5, 3], "for a millisecond"


async def test_idle_instances_share_what_waits() -> None:
    house = House(2)
    for _ in range(8):
        house.ask()
    await house.turns()
    assert [[len(batch) for batch in one.sent] for one in house.instances] == [[4], [4]]


async def test_a_call_waits_for_company_only_so_long_and_only_where_that_is_of_use() -> None:
    kind = Kind(4, 0.05, 256, False)
    house = House(kind=kind)
    house.ask()
    await house.turns()
    assert house.instances[0].sent == [], "there may come more"
    for _ in range(3):
        house.ask()
    await house.turns()
    assert [len(batch) for batch in house.instances[0].sent] == [4], "there is no room for more"
    house.instances[0].answer()
    house.ask(gathers=False)
    await house.turns()
    assert len(house.instances[0].sent) == 2, "it does not wait"
    house.instances[0].answer()
    last = house.ask()
    house.clock.now_s += kind.batch_delay_s
    async with asyncio.timeout(DEADLINE_S):
        while not house.instances[0].flights:  # a real timer
            await asyncio.sleep(0.001)
    assert house.instances[0].sent[-1] == [last]
    one_by_one = House(batching=False, kind=kind)
    one_by_one.ask()
    await one_by_one.turns()
    assert len(one_by_one.instances[0].sent) == 1


async def test_a_second_batch_goes_ahead_only_when_all_is_cheap() -> None:
    house = House(kind=Kind(1, 0.0, 256, False))
    works = [house.ask() for _ in range(4)]
    await house.turns()
    assert house.instances[0].sent == [works[:1]], "nobody knows what it costs"
    house.instances[0].answer(0.001)
    await house.turns()
    assert house.instances[0].sent == [works[:1], works[1:2], works[2:3]]
    dear = House(kind=Kind(1, 0.0, 256, False))
    await dear.knows(0.02)
    for _ in range(4):
        dear.ask()
    await dear.turns()
    assert len(dear.instances[0].flights) == 1
    urgent = dear.ask(klass=Class.REALTIME)
    dear.instances[0].answer(0.02)
    await dear.turns()
    assert dear.instances[0].sent[-1] == [urgent], "it passed what waits here"


async def test_calls_that_were_refused_or_ended_say_nothing_of_what_calls_cost() -> None:
    house = House()
    await house.knows(0.1)
    for fault in ("refused", "failed", "expired"):
        work = house.ask()
        await house.turns()
        house.instances[0].answer(0.0, fault)
        assert isinstance(await error_of(work), (RequestError, RunError, LateError))
    assert house.dispatch.batches.costs["m"].row_s() == 0.1


def thieves() -> House:
    """Two instances of which the second has nothing to do; the first has two batches."""
    return House(2, kind=Kind(1, 0.0, 256, False))


async def stolen(house: House, **more: Any) -> tuple[Instance, Instance, Work, Work]:
    victim, thief = house.instances
    await house.knows(0.001)
    house.instances.remove(thief)
    one, other = house.ask(**more), house.ask(**more)
    await house.turns()
    assert len(victim.flights) == 2
    house.instances.append(thief)
    house.dispatch.pump_soon()
    await house.turns()
    return victim, thief, one, other


async def test_an_idle_instance_steals_what_another_has_not_begun() -> None:
    house = thieves()
    victim, thief, one, other = await stolen(house)
    assert thief.sent == [[other]]
    assert victim.withdrawn == [other]
    thief.answer()
    assert other.done.done()
    victim.answer()
    victim.answer(fault="failed")  # of a run that was ended; the second answer does not count
    assert one.done.result() is other.done.result() is RESULT
    await house.turns()
    assert not thief.flights
    assert not victim.flights


async def test_what_must_not_be_made_twice_is_not_stolen() -> None:
    _, thief, _, _ = await stolen(thieves(), once=True)
    assert thief.sent == []


@pytest.mark.parametrize("fault", ["failed", "withdrawn", ""])
async def test_the_victims_fault_is_not_the_calls(fault: str) -> None:
    victim, thief, _, other = await stolen(thieves())
    victim.answer()
    victim.answer(fault=fault)
    assert other.done.done() == (fault == "")
    thief.answer()
    assert other.done.result() is RESULT


@pytest.mark.parametrize("order", ["victim thief", "thief victim"])
async def test_both_die(order: str) -> None:
    house = thieves()
    victim, thief, one, other = await stolen(house)
    for who in order.split():
        (victim if who == "victim" else thief).die()
        await house.turns()
    third = house.add()
    house.dispatch.pump_soon()
    await house.turns()
    while third.flights:
        third.answer()
        await house.turns()
    # One death each counts: the thief had it, the victim had it no more.
    assert one.done.result() is other.done.result() is RESULT
    assert [len(batch) for batch in third.sent] == [1, 1]


async def test_a_thief_dies_and_the_victim_still_takes_the_call_for_withdrawn() -> None:
    house = thieves()
    victim, thief, _, other = await stolen(house)
    victim.answer()
    victim.answer(fault="failed")
    thief.die()
    await house.turns()
    assert other.holder is victim
    victim.answer(fault="withdrawn")
    await house.turns()
    assert not other.done.done()
    victim.answer()
    assert other.done.result() is RESULT


async def test_what_is_made_again_is_the_only_thing_that_its_worker_has() -> None:
    house = thieves()
    victim, thief, one, _ = await stolen(house)
    victim.die()
    await house.turns()
    assert one.holder is None, "it waits: the other is busy"
    thief.answer()
    later = house.ask()
    await house.turns()
    assert one.holder is thief
    assert later.holder is None


async def test_a_call_whose_worker_died_is_made_once_more_alone() -> None:
    house = House()
    works = [house.ask() for _ in range(3)]
    await house.turns()
    for _ in range(TRIES_MAX - 1):
        house.instances[0].die()
        house.add()
        await house.turns()
    good = works[1:]
    house.instances[0].die()  # the first one kills whoever has it
    assert isinstance(await error_of(works[0]), CallLost)
    house.add()
    await house.turns()
    while house.instances[0].flights:
        house.instances[0].answer()
        await house.turns()
    assert [work.done.result() for work in good] == [RESULT, RESULT]
    assert [len(batch) for batch in house.instances[0].sent] == [1, 1]


async def test_what_must_not_be_made_twice_is_given_back() -> None:
    house = House()
    work = house.ask(once=True)
    await house.turns()
    house.instances[0].die()
    assert isinstance(await error_of(work), CallLost)


async def test_callers_are_told_when_their_deadline_passes() -> None:
    house = House(kind=Kind(1, 0.0, 256, False))
    running, waiting = house.ask(1.0), house.ask(1.0)
    patient = house.ask(100.0)
    await house.turns()
    house.clock.now_s += 1.5
    for work in (running, waiting):
        assert isinstance(await error_of(work), LateError)
    assert house.instances[0].withdrawn == [running], "its run is ended, the other never began"
    assert not patient.done.done()


async def test_the_run_of_a_stolen_call_is_ended_where_it_runs() -> None:
    house = thieves()
    victim, thief, _, other = await stolen(house)
    house.clock.now_s += 60
    assert isinstance(await error_of(other), LateError)
    assert other in thief.withdrawn
    assert victim.withdrawn.count(other) == 1


async def test_a_cancelled_call_leaves_the_queue_or_its_run() -> None:
    house = House(kind=Kind(1, 0.0, 256, False))
    running, waiting, last = house.ask(), house.ask(), house.ask()
    await house.turns()
    for work in (running, waiting):
        house.dispatch.cancel(work)
    assert house.instances[0].withdrawn == [running]
    house.instances[0].answer(fault="withdrawn")
    await house.turns()
    assert house.instances[0].sent == [[running], [last]]


async def test_a_full_queue_says_at_once_when_to_come_again() -> None:
    house = House(kind=Kind(1, 0.0, 256, False), queue_max=10)
    await house.knows(0.5)
    house.dispatch.batches.costs["n"] = dear = Costs()
    dear.measured(100.0, 1, 1)  # of a model that nobody asks now
    for _ in range(11):
        house.ask()
        await house.turns()
    with pytest.raises(BusyError) as caught:
        house.ask()
    assert caught.value.retry_s == 5.0


async def test_a_model_that_was_unloaded_is_told_of_and_the_others_go_on() -> None:
    house = House(0)
    gone, there = house.ask(model="gone"), house.ask()
    house.add()
    assert isinstance(await error_of(gone), NotThere)
    await house.turns()
    house.instances[0].answer()
    assert there.done.result() is RESULT


async def test_when_it_closes_nobody_is_left_waiting() -> None:
    house = House(kind=Kind(1, 0.0, 256, False))
    running, waiting = house.ask(1000.0), house.ask(1000.0)
    await house.turns()
    house.dispatch.close("it is being stopped")
    house.instances[0].die()
    for work in (running, waiting):
        assert isinstance(await error_of(work), BusyError)


async def test_whatever_happens_every_call_has_one_answer() -> None:
    chance = random.Random(SEED)
    for _ in range(ROUNDS):
        await any_course(chance)


def answered(answers: dict[int, int], i: int, done: asyncio.Future[Result]) -> None:
    answers[i] = answers.get(i, 0) + 1
    if not done.cancelled():
        done.exception()  # somebody looks


async def any_course(chance: random.Random) -> None:
    """Calls, answers, deaths, births, cancellations in any order; then the end of all."""
    house = House(chance.choice([1, 2, 3]), chance.random() < 0.5, queue_max=1000)
    if chance.random() < 0.7:
        await house.knows(0.0005, chance.choice([None, 0.0001, 0.001]))
    works: list[Work] = []
    answers: dict[int, int] = {}
    for _ in range(chance.randrange(40)):
        busy = [one for one in house.instances if one.flights]
        match chance.choice("aaaarrrrdbcts"):
            case "a":
                once = chance.random() < 0.1
                works.append(house.ask(chance.choice([1.0, 50.0]), once=once))
                works[-1].done.add_done_callback(partial(answered, answers, len(works)))
            case "r" if busy:
                one = chance.choice(busy)
                one.answer(0.001, chance.choice(["", "", "", "failed", "expired"]))
            case "d" if house.instances:
                chance.choice(house.instances).die()
            case "b" if len(house.instances) < 4:
                house.add()
            case "c" if works:
                house.dispatch.cancel(chance.choice(works))
            case "t":
                house.clock.now_s += chance.choice([0.1, AGE_S])
        if chance.random() < 0.7:
            await house.turns()
    house.add()
    async with asyncio.timeout(DEADLINE_S):
        while not all(work.done.done() for work in works):
            await house.turns()
            for one in house.instances:
                if one.flights:
                    first = next(iter(one.flights.values())).works
                    gone = all(work in one.withdrawn for work in first)
                    one.withdrawn = [work for work in one.withdrawn if work not in first]  # once
                    one.answer(fault="withdrawn" if gone else "")
    await house.turns()
    assert answers == {i + 1: 1 for i in range(len(works))}
    assert all(work.tries <= TRIES_MAX for work in works)
    house.dispatch.close("done")


@pytest.mark.parametrize("once", [True, False])
async def test_what_found_no_room_in_an_answer_is_made_again_unless_it_must_not(once: bool) -> None:
    house = House()
    work = house.ask(once=once)
    await house.turns()
    house.instances[0].answer(fault="withdrawn")
    await house.turns()
    assert len(house.instances[0].sent) == (1 if once else 2)
    if once:
        assert isinstance(await error_of(work), RunError)


async def test_a_batch_is_never_so_long_that_its_process_would_be_killed_for_it() -> None:
    house = House(call_timeout_s=10.0)
    await house.knows(1.5, 1.2)
    for _ in range(10):
        house.ask()
    await house.turns()
    assert len(house.instances[0].sent[0]) == 4, "in half of the time that it has"


async def test_a_call_without_a_row_says_nothing_of_what_a_row_costs() -> None:
    house = House()
    await house.knows(0.1)
    house.ask(rows=0)
    await house.turns()
    house.instances[0].answer(1e-6)
    assert house.dispatch.batches.costs["m"].row_s() == 0.1


def test_what_is_empty_has_no_rows_however_long_it_is() -> None:
    def rows(*shape: int) -> int:
        one = {"name": "x", "shape": shape, "datatype": "FP32", "data": []}
        text = msgspec.json.encode({"inputs": [one]})
        return Bodies().parsed("m", None, None, text).request.rows

    assert rows(1 << 26, 0) == rows(0, 4) == 0
    assert (rows(3, 4), rows()) == (3, 1)

"""The policy alone: what is known of a rollout goes in, what is done comes out."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.errors import RequestError
from fleet.control import plan
from fleet.control.plan import Plan
from fleet.control.policy import (
    US,
    Action,
    Advance,
    Count,
    Finish,
    Pause,
    Release,
    Settle,
    Standing,
    TakeBack,
    decide,
)

BOUNDS = [1, 10, 100]


def made(**settings: object) -> Plan:
    told = {"name": "model.install", "bounds": BOUNDS, "samples_min": 4, **settings}
    return Plan(**told)  # type: ignore[arg-type]


def at(
    step: Count, whole: Count | None = None, *, number: int = 0, state: str = "running", **more: int
) -> Standing:
    settled_us = more.pop("settled_us", None)
    return Standing(state, number, settled_us, step, step, whole or step, **more)


def test_as_many_are_released_as_are_ready_and_may_be_in_flight() -> None:
    assert decide(made(), at(Count(ready=1), Count(ready=100)), 0) == [Release(1)]
    some = Count(ready=50, in_flight=7)
    assert decide(made(in_flight_max=10), at(some, number=2), 0) == [Release(3)]
    full = Count(ready=50, in_flight=10)
    assert decide(made(in_flight_max=10), at(full, number=2), 0) == []


def test_a_step_settles_soaks_and_gives_way_to_the_next() -> None:
    done = at(Count(good=1), Count(good=1, ready=99))
    assert decide(made(soak_s=60), done, 5) == [Settle()]
    settled = at(Count(good=1), Count(good=1, ready=99), settled_us=5)
    assert decide(made(soak_s=60), settled, 5 + 60 * US - 1) == []
    assert decide(made(soak_s=60), settled, 5 + 60 * US) == [Advance()]
    assert decide(made(), at(Count(good=100), number=2), 0) == [Finish()]


def test_a_step_waits_for_its_quorum_and_for_no_one_else_who_is_away() -> None:
    rest = Count(ready=90)
    for good, expected in ((4, []), (5, [Settle()])):
        step = Count(good=good, away=9 - good, gone=1)
        assert decide(made(quorum=0.5), at(step, rest, number=1), 0) == expected
    nobody = Count(away=1)
    assert decide(made(quorum=0.0), at(nobody, rest), 0) == [], "nobody has shown anything"


def test_the_last_step_waits_for_all() -> None:
    assert decide(made(), at(Count(good=90, away=10), number=2), 0) == []
    assert decide(made(), at(Count(good=90, gone=10), number=2), 0) == []
    assert decide(made(), at(Count(good=90, missed=10), number=2), 0) == [Finish()]


def test_it_pauses_when_too_many_failed_and_enough_have_ended() -> None:
    few = Count(bad=3, new_bad=3, ready=6)
    assert not any(isinstance(one, Pause) for one in decide(made(), at(few), 0))
    enough = Count(good=3, bad=1, new_good=3, new_bad=1, ready=6)
    ((pause),) = decide(made(failures_max=0.24), at(enough), 0)
    assert pause == Pause("1 of 4 in this step failed, more than 24.00%")
    assert decide(made(failures_max=0.25), at(enough), 0) == [Release(6)], "not more than"
    whole = Count(good=9, bad=3, new_good=9, new_bad=3, ready=9)
    (pause,) = decide(made(failures_max=0.2), at(Count(ready=9), whole, number=2), 0)
    assert pause == Pause("3 of 12 in all failed, more than 20.00%")


def test_what_failed_before_it_was_resumed_is_forgiven() -> None:
    old = Count(good=3, bad=9, new_good=0, new_bad=0, ready=6)
    assert decide(made(), at(old), 0) == [Release(6)]


@pytest.mark.parametrize("state", ["paused", "aborted", "finished"])
def test_only_a_running_one_goes_on(state: str) -> None:
    assert decide(made(), at(Count(ready=5), state=state), 0) == []


def test_the_way_back_goes_to_those_it_is_meant_for() -> None:
    some = {"undone": 2, "undone_all": 7}
    for on, state, expected in (
        ("", "running", []),
        ("abort", "running", []),
        ("failed", "paused", [TakeBack(all=False)]),
        ("failed", "aborted", [TakeBack(all=False)]),
        ("abort", "aborted", [TakeBack(all=True)]),
        ("both", "aborted", [TakeBack(all=False), TakeBack(all=True)]),
    ):
        told = decide(made(back="x", back_on=on), at(Count(in_flight=1), state=state, **some), 0)
        assert told == expected, (on, state)


def test_members_are_counted_by_what_became_of_their_command() -> None:
    count = Count()
    flags = {"late": False, "online": True, "new": True}
    for state in ("planned", "waiting", "sent", "accepted", "running", "succeeded", "failed"):
        count.add(state, 1, **flags)
    for state in ("refused", "interrupted", "expired", "lapsed", "withdrawn"):
        count.add(state, 1, **flags)
    for state in ("planned", "sent", "accepted"):
        count.add(state, 1, late=False, online=False, new=True)
    count.add("running", 1, late=True, online=False, new=False)
    told = Count(
        ready=1, away=1, in_flight=5, gone=1, good=1, bad=4, missed=3, new_good=1, new_bad=3
    )
    assert count == told
    assert count.size == 16


class Site:
    """Devices that do what chance wants, and a rollout to them, without a database."""

    def __init__(self, made: Plan, chance: random.Random, bad_share: float) -> None:
        self.plan, self.chance, self.bad_share = made, chance, bad_share
        self.members = ["planned"] * made.bounds[-1]
        self.online = [chance.random() < 0.8 for _ in self.members]
        self.state, self.number, self.settled_us = "running", 0, None
        self.now_us = 0

    def count(self, first: int, end: int) -> Count:
        found = Count()
        for place in range(first, end):
            online = self.online[place]
            found.add(self.members[place], 1, late=False, online=online, new=True)
        return found

    def standing(self) -> Standing:
        bounds = [0, *self.plan.bounds]
        first, end = bounds[self.number : self.number + 2]
        counts = self.count(first, end), self.count(0, end), self.count(0, len(self.members))
        return Standing(self.state, self.number, self.settled_us, *counts)

    def do(self, action: Action) -> None:
        match action:
            case Release(count):
                end = self.plan.bounds[self.number]
                ready = [
                    place
                    for place in range(end)
                    if self.members[place] == "planned" and self.online[place]
                ]
                assert count <= len(ready)
                for place in ready[:count]:
                    self.members[place] = "sent"
                busy = self.standing().whole.in_flight
                assert busy <= self.plan.in_flight_max, "those that come back with it come on top"
            case Pause():
                self.state = "paused"
            case Settle():
                self.settled_us = self.now_us
            case Advance():
                assert self.settled_us is not None
                assert self.now_us >= self.settled_us + self.plan.soak_s * US
                self.number, self.settled_us = self.number + 1, None
            case Finish():
                self.state = "finished"

    def moment(self) -> None:
        """Devices answer, come and go."""
        self.now_us += US
        for place, state in enumerate(self.members):
            if state == "sent" and self.online[place] and self.chance.random() < 0.5:
                bad = self.chance.random() < self.bad_share
                self.members[place] = "failed" if bad else "succeeded"
            if self.chance.random() < 0.05:
                self.online[place] = not self.online[place]


@given(st.integers(0, 2**32), st.integers(1, 60), st.sampled_from([0.0, 0.05, 0.5]))
def test_whatever_devices_do_the_bounds_hold_and_it_comes_to_an_end(
    seed: int, devices: int, bad_share: float
) -> None:
    chance = random.Random(seed)
    in_flight_max, soak_s = chance.randint(1, 20), chance.choice([0, 3])
    bounds = plan.shares("1,10,50,100", devices)
    rules = {"in_flight_max": in_flight_max, "soak_s": soak_s, "failures_max": 0.2}
    site = Site(made(bounds=bounds, **rules), chance, bad_share)
    for _ in range(2000):
        for _ in range(10):
            actions = decide(site.plan, site.standing(), site.now_us)
            for action in actions:
                site.do(action)
            if not actions:
                break
        else:
            raise AssertionError("it never has enough")
        bound = bounds[site.number]
        assert all(state == "planned" for state in site.members[bound:]), "nobody beyond the step"
        if site.state != "running":
            break
        site.moment()
    whole = site.count(0, devices)
    if site.state == "finished":
        assert whole.ended == whole.size
        assert whole.bad <= 0.2 * whole.size or whole.size < 4
    else:
        assert site.state == "paused"
        assert whole.bad


def test_the_order_of_the_devices_is_that_of_the_seed() -> None:
    names = [f"d{i}" for i in range(50)]
    told = plan.ordered(names, "a")
    assert told == plan.ordered([*reversed(names), "d7"], "a")
    assert sorted(told) == sorted(names)
    assert told != plan.ordered(names, "b")


def test_steps_are_shares_or_numbers() -> None:
    assert plan.shares("1,10,50,100", 500) == [5, 50, 250, 500]
    assert plan.shares("1,10", 30) == [1, 3, 30], "the last is all of them"
    assert plan.shares("0.1,1,2,100", 3) == [1, 3]
    assert plan.counts("1,20,200", 500) == [1, 20, 200, 500]
    assert plan.counts("10,1000", 50) == [10, 50]
    for wrong in ("", "10,5", "x", "0,100", "50,101", "nan", "-1,100", "inf"):
        with pytest.raises(RequestError, match="expected ascending"):
            plan.shares(wrong, 10)
    with pytest.raises(RequestError):
        plan.counts("inf", 10)

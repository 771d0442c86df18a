"""The GPU's time: shares, urgency, and that no turn is ever lost.

Most of it is played: domains with batches of known length, and a clock that the test turns.
"""

import heapq
import os
import random
from collections.abc import Callable
from itertools import count
from typing import cast

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as some

from agent.clock import Clock
from agent.config import Domain as Settings
from agent.inference.domains.lease import OVERDRAFT_S, QUANTUM_S, UNBOUNDED_S, Lease, Seat, Want
from agent.inference.domains.work import Class

EP = "FakeExecutionProvider"
few = settings(max_examples=300 if os.environ.get("HOLDFAST_LONG") == "1" else 12)
CLASSES = ("realtime", "interactive", "batch")


class Hand:
    """A clock that is turned by hand."""

    def __init__(self) -> None:
        self.now_s = 100.0

    def monotonic(self) -> float:
        return self.now_s


class Player:
    """A domain with some instances: how long its batches run, and what waits in it."""

    def __init__(
        self, stage: "Stage", klass: str, share: float | None, batch_s: float, instances: int = 1
    ) -> None:
        self.stage = stage
        self.klass = Class[klass.upper()]
        self.batch_s = batch_s
        self.waiting = 0
        self.endless = False
        self.deadline_s = 1e9
        self.idle = [f"{klass} {i}" for i in range(instances)]
        self.began = list[float]()
        self.asked_s: float | None = None  # since when it has wanted a turn
        settings = Settings(models=["m"], class_=klass, gpu_share=share, call_timeout_s=50.0)
        self.seat: Seat = stage.lease.seat(settings, self.want, lambda: stage.wake(self))

    def want(self) -> Want | None:
        if not self.idle or not (self.waiting or self.endless):
            return None
        return Want(self.klass, self.deadline_s)

    def pump(self) -> None:
        while self.want() and self.seat.turn(EP, ahead=False):
            holder = self.idle.pop()
            self.waiting -= 1
            self.seat.began(EP, holder, self.klass)
            self.stage.sent(self, holder)

    def comes(self) -> None:
        self.waiting += 1
        self.stage.wake(self)


class Stage:
    """The device, played: what is due is done in the order of time."""

    def __init__(self, seed: int = 0) -> None:
        self.clock = Hand()
        self.lease = Lease(cast(Clock, self.clock), frozenset({EP}))
        self.players = list[Player]()
        self.turns = list[tuple[Player, float]]()  # who began when
        self._due: list[tuple[float, int, Callable[[], None]]] = []
        self._numbers = count()
        self._woken = list[Player]()
        self._chance = random.Random(seed)

    def play(self, klass: str, share: float | None, batch_s: float, instances: int = 1) -> Player:
        self.players.append(Player(self, klass, share, batch_s, instances))
        return self.players[-1]

    def at(self, after_s: float, act: Callable[[], None]) -> None:
        heapq.heappush(self._due, (self.clock.now_s + after_s, next(self._numbers), act))

    def wake(self, player: Player) -> None:
        self._woken.append(player)

    def sent(self, player: Player, holder: str) -> None:
        self.turns.append((player, self.clock.now_s))
        self.at(player.batch_s, lambda: self._answer(player, holder))

    def _answer(self, player: Player, holder: str) -> None:
        if holder in player.seat.turns:
            player.idle.append(holder)
            player.seat.over(holder)
            self.wake(player)

    def run(self, seconds: float) -> None:
        """Let so much time pass; each also asks every 20 ms, as a domain's sweep does."""
        end_s = self.clock.now_s + seconds
        for i in range(int(seconds / 0.02)):
            self.at(i * 0.02, lambda: self._woken.extend(self.players))
        while self._due and self._due[0][0] <= end_s:
            self.clock.now_s, _, act = heapq.heappop(self._due)
            act()
            while self._woken:
                self._woken.pop(self._chance.randrange(len(self._woken))).pump()
        self.clock.now_s = end_s

    def used(self) -> dict[Player, float]:
        self.lease.look()
        return {one: one.seat.used_s for one in self.players}


players = some.lists(
    some.tuples(
        some.sampled_from(CLASSES),
        some.sampled_from([0.05, 0.1, 0.3, 0.7]),
        some.sampled_from([0.02, 0.08, 0.4]),
        some.integers(1, 2),
    ),
    min_size=2,
    max_size=4,
)


@few
@given(players, some.integers(0, 1000))
def test_when_all_want_all_of_it_each_gets_its_share(
    cast: list[tuple[str, float, float, int]], seed: int
) -> None:
    stage = Stage(seed)
    for one in cast:
        stage.play(*one).endless = True
    stage.run(5.0)  # where urgency takes its overdraft
    before = stage.used()
    stage.run(60.0)
    used = {one: s - before[one] for one, s in stage.used().items()}
    assert sum(used.values()) == pytest.approx(60.0, abs=0.1), "it was idle"
    whole = sum(one.seat.weight for one in used)
    slack_s = 2 * (OVERDRAFT_S + max(one.batch_s for one in used)) * len(used)
    for one, used_s in used.items():
        assert used_s == pytest.approx(60.0 * one.seat.weight / whole, abs=slack_s)


@few
@given(some.integers(0, 1000), some.sampled_from([0.005, 0.05, 0.09]))
def test_urgent_work_within_its_share_waits_for_one_batch_at_most(
    seed: int, batch_s: float
) -> None:
    stage = Stage(seed)
    urgent = stage.play("realtime", 0.7, 0.02)
    for klass in ("interactive", "batch"):
        stage.play(klass, 0.3, batch_s, 2).endless = True
    chance = random.Random(seed)
    came = list[float]()

    def comes() -> None:
        came.append(stage.clock.now_s)
        urgent.comes()
        stage.at(chance.uniform(0.1, 0.3), comes)  # a fifth of the time, at most

    stage.at(0.5, comes)
    stage.run(20.0)
    answered = [s for one, s in stage.turns if one is urgent]
    assert len(came) - 1 <= len(answered)
    for asked_s, began_s in zip(came, answered, strict=False):
        passed = [1 for one, s in stage.turns if one is not urgent and asked_s < s < began_s]
        assert not passed, "another began while it waited"
        assert began_s - asked_s <= batch_s + 1e-9


def test_a_batch_that_cannot_be_cut_keeps_urgent_work_waiting_for_the_quantum_alone() -> None:
    stage = Stage()
    urgent, long = stage.play("realtime", 0.7, 0.01), stage.play("batch", 0.3, 30.0)
    stage.at(0.0, long.comes)
    stage.at(0.01, urgent.comes)
    stage.run(20.0)
    assert urgent.waiting == 0
    (_, long_s), (_, urgent_s) = stage.turns
    assert urgent_s - long_s < QUANTUM_S + 0.021  # a sweep later
    assert long.seat.used_s + urgent.seat.used_s <= 20.0


def test_work_of_the_same_class_waits_until_the_batch_is_done() -> None:
    stage = Stage()
    stage.play("batch", 0.7, 0.01), stage.play("batch", 0.3, 3.0)
    first, long = stage.players
    stage.at(0.0, long.comes)
    stage.at(0.01, first.comes)
    stage.run(2.9)
    assert [one for one, _ in stage.turns] == [long]
    stage.run(1.0)
    assert [one for one, _ in stage.turns] == [long, first]


def test_who_waits_for_a_turn_of_another_is_known() -> None:
    stage = Stage()
    long, same = stage.play("batch", 0.3, 3.0), stage.play("batch", 0.7, 1.0)
    stage.at(0.0, long.comes)
    stage.at(0.1, same.comes)
    stage.run(0.05)
    assert not long.seat.waits, "it runs"
    assert not same.seat.waits, "it wants nothing"
    stage.run(2.5)
    assert (long.seat.waits, same.seat.waits) == (False, True)
    stage.run(1.0)
    assert not same.seat.waits, "it is its turn"


def test_whose_turn_has_lapsed_keeps_nobody_waiting() -> None:
    stage = Stage()
    stage.play("batch", 0.3, 1e6).comes()
    stage.run(1.0)
    same = stage.play("batch", 0.7, 0.01)
    same.seat.turn(EP, ahead=False)
    same.waiting = 1  # and it does not ask
    stage.clock.now_s += 40.0
    assert same.seat.waits
    stage.clock.now_s += 10.0
    assert not same.seat.waits, "it would be sent"


@pytest.mark.parametrize(
    ("first", "second", "deadlines_s"),
    [
        ("interactive", "interactive", (300.0, 200.0)),  # of one class: the earliest deadline
        ("batch", "realtime", (200.0, 300.0)),  # urgency goes before an earlier deadline
    ],
)
def test_who_goes_first(first: str, second: str, deadlines_s: tuple[float, float]) -> None:
    stage = Stage()
    busy, behind, ahead = (stage.play(klass, 0.3, 0.1) for klass in ("interactive", first, second))
    behind.deadline_s, ahead.deadline_s = deadlines_s
    stage.at(0.0, busy.comes)
    stage.at(0.01, behind.comes)
    stage.at(0.02, ahead.comes)
    stage.run(1.0)
    assert [one for one, _ in stage.turns] == [busy, ahead, behind]


def test_nothing_is_sent_ahead_where_another_may_come() -> None:
    stage = Stage()
    one, other = stage.play("realtime", 0.7, 1.0), stage.play("batch", 0.3, 1.0)
    for seat in (one.seat, other.seat):
        seat.turn(EP, ahead=False)
    one.waiting = 1
    assert one.seat.turn(EP, ahead=False) == QUANTUM_S
    assert one.seat.turn(EP, ahead=True) == 0.0
    other.seat.leave()
    assert one.seat.turn(EP, ahead=True) == UNBOUNDED_S


def test_what_nobody_wanted_costs_nothing_and_is_not_saved_up() -> None:
    stage = Stage()
    realtime, batch = stage.play("realtime", 0.7, 0.05), stage.play("batch", 0.3, 0.05)
    batch.endless = True
    stage.run(100.0)
    realtime.endless = True
    before = stage.used()
    stage.run(30.0)
    used = {one: s - before[one] for one, s in stage.used().items()}
    assert used[realtime] == pytest.approx(21.0, abs=1.0)
    assert used[batch] == pytest.approx(9.0, abs=1.0)


def test_the_only_domain_waits_for_nobody_and_sends_ahead() -> None:
    stage = Stage()
    only = stage.play("batch", 0.1, 1.0)
    assert only.seat.turn(EP, ahead=False) == UNBOUNDED_S
    only.seat.began(EP, "a", Class.BATCH)
    assert only.seat.turn(EP, ahead=True) == UNBOUNDED_S


def test_the_processor_is_not_shared_out_here() -> None:
    stage = Stage()
    one, other = stage.play("batch", 0.1, 1.0), stage.play("realtime", 0.9, 1.0)
    for seat in (one.seat, other.seat):
        seat.turn(EP, ahead=False)
    one.seat.began(EP, "a", Class.BATCH)
    assert other.seat.turn("CPUExecutionProvider", ahead=True) == UNBOUNDED_S
    other.seat.began("CPUExecutionProvider", "b", Class.REALTIME)
    assert not other.seat.turns


Act = tuple[str, int, float]
acts = some.lists(
    some.tuples(
        some.sampled_from(["comes", "dies", "hangs", "leaves", "rests"]),
        some.integers(0, 2),
        some.sampled_from([0.0, 0.001, 0.05, 0.3]),
    ),
    max_size=60,
)


@few
@given(acts, some.integers(0, 1000))
def test_no_turn_is_lost_whatever_dies(acts: list[Act], seed: int) -> None:
    stage = Stage(seed)
    parts = zip(CLASSES, (0.6, 0.3, 0.1), (0.02, 0.05, 0.2), strict=True)
    for klass, share, batch_s in parts:
        stage.play(klass, share, batch_s, 2)
    for act, i, pause_s in acts:
        player = stage.players[i]
        held = list(player.seat.turns)
        match act:
            case "comes":
                player.comes()
            case "dies" if held:  # its place is taken by another
                player.idle.append(str(held[0]))
                player.seat.over(held[0])
            case "hangs" if held:  # until it is killed
                stage.at(10.0, lambda p=player, h=held[0]: p.seat.over(h))
            case "leaves":
                player.seat.leave()
                player.idle += map(str, held)
        stage.run(pause_s)
    stage.run(60.0)
    for player in stage.players:
        assert not player.seat.turns
        assert player.waiting <= 0, "it waits for ever"
    for player in stage.players:  # and there is a turn for each
        player.comes()
    stage.run(1.0)
    assert all(player.waiting <= 0 for player in stage.players)


@few
@given(some.data())
def test_a_holder_that_hangs_keeps_the_others_no_longer_than_a_call_may_take(
    data: some.DataObject,
) -> None:
    stage = Stage()
    hung = stage.play(data.draw(some.sampled_from(CLASSES)), 0.5, 1e6)
    other = stage.play(data.draw(some.sampled_from(CLASSES)), 0.5, 0.01)
    assume(hung.klass <= other.klass)
    stage.at(0.0, hung.comes)
    stage.at(0.1, other.comes)
    stage.run(49.0)
    assert other.waiting == 1
    stage.run(2.0)
    assert other.waiting == 0

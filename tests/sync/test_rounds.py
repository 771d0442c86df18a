"""What the watchdog goes by: the link comes round whatever the network does, unless it hangs."""

import asyncio
import math
import random
from pathlib import Path
from typing import Any

import pytest

from agent.store.linkstate import Orders
from agent.sync.up.gate import Gate
from agent.sync.up.rounds import Rounds
from tests.e2e.judge import Judge
from tests.outside import Mosquitto, running
from tests.sync.rig import BLOB, Proxy, Rig, emptied, eventually, linked


def test_a_round_is_over_when_all_have_come() -> None:
    rounds = Rounds("a", "b")
    for _ in range(5):
        rounds.came("a")
    assert rounds.count == 0, "b stands still"
    rounds.came("b")
    assert rounds.count == 1
    rounds.came("b")
    rounds.came("b")
    assert rounds.count == 1, "a stands still"


async def goes_on(rig: Rig, rounds: int = 2) -> None:
    assert rig.link.connected_since
    begun, since = rig.link.steps, rig.link.connected_since
    await eventually(lambda: rig.link.steps >= begun + rounds, "it comes round")
    assert rig.link.connected_since == since, "over the same connection"


async def test_a_link_that_may_not_send_or_gets_no_ack_comes_round(
    tmp_path: Path, broker: Mosquitto
) -> None:
    """Nobody acknowledges, and a second is the patience; then an operator has it paused."""
    async with linked(Rig(tmp_path, broker.url, ack_timeout_s=1.0)) as rig:
        await eventually(lambda: rig.link.connected_since, "connected")
        await goes_on(rig)
        await rig.fill(5)
        await eventually(lambda: rig.holds("ack_missing"), "no ack comes")
        await goes_on(rig)
        rig.link._pace.order(Orders(math.inf))
        await rig.fill(5)
        await goes_on(rig)


async def test_a_link_that_swallows_everything_comes_round(
    tmp_path: Path, broker: Mosquitto
) -> None:
    patient = {"in_flight_max": 1, "keepalive_s": 1200, "ack_timeout_s": 3600}
    async with Proxy(broker) as proxy, linked(Rig(tmp_path, proxy.url, **patient)) as rig:
        await eventually(lambda: rig.link.connected_since, "connected")
        proxy.black_hole = True
        await rig.fill(20)
        await goes_on(rig)


async def test_a_link_on_a_thin_line_comes_round(tmp_path: Path, broker: Mosquitto) -> None:
    """What is put in waits for minutes before it may go."""
    async with linked(Rig(tmp_path, broker.url, rate_bytes_per_s_max=1024)) as rig:
        await eventually(lambda: rig.link.connected_since, "connected")
        await rig.fill(5, random.Random(1).randbytes(100_000))
        await goes_on(rig)


class Stuck:
    """At its first call it waits for ever, as for a thread that does not answer."""

    def __init__(self, real: Any) -> None:
        self.waits = asyncio.Event()
        self._real = real

    async def __call__(self, *asked: Any, **more: Any) -> Any:
        if not self.waits.is_set():
            self.waits.set()
            await asyncio.Event().wait()
        return await self._real(*asked, **more)


async def test_a_sender_that_hangs_stands_still_and_a_restart_has_it_send_all(
    tmp_path: Path, broker: Mosquitto, monkeypatch: pytest.MonkeyPatch
) -> None:
    judge = Judge(tmp_path / "judge.db", broker.port, "dev")
    with running(judge):
        async with linked(Rig(tmp_path, broker.url)) as rig:
            await rig.fill(5)
            await emptied(rig)
            stuck = Stuck(rig.store.outbox.lease)
            monkeypatch.setattr(rig.store.outbox, "lease", stuck)
            await rig.fill(5)
            await eventually(stuck.waits.is_set, "it hangs")
            steps = rig.link.steps
            late = rig.uplink.rounds._out
            await eventually(lambda: late == {"next"}, "all others come round")
            assert rig.link.steps <= steps + 1
            done = await rig.link.restart("")
            assert "begins anew" in done
            await emptied(rig)
        assert sorted(judge.seqs("x.segments")) == list(range(1, 11))
        assert not judge.faults


async def test_a_gate_that_lets_nobody_through_stands_still_and_a_restart_has_all_sent(
    tmp_path: Path, broker: Mosquitto, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The broker's answers are lost on their way to it; that no fault of the network can do."""
    judge = Judge(tmp_path / "judge.db", broker.port, "dev")
    settings = {"in_flight_max": 4, "heartbeat_s": 3600, "ack_timeout_s": 3600}
    with running(judge):
        async with linked(Rig(tmp_path, broker.url, **settings)) as rig:
            await eventually(lambda: rig.link.connected_since, "connected")
            rounds, came = rig.uplink.rounds, list[str]()
            note = rounds.came
            monkeypatch.setattr(rounds, "came", lambda one: (came.append(one), note(one)))
            with monkeypatch.context() as broken:
                broken.setattr(Gate, "leave", lambda *_: None)
                await rig.fill(20, BLOB)
                await eventually(lambda: came[-4:] == ["late"] * 4, "the sender comes no more")
            await rig.link.restart("")
            await emptied(rig)
        assert sorted(judge.seqs("x.segments")) == list(range(1, 21))


async def test_what_was_not_acknowledged_is_sent_again_after_a_restart(
    tmp_path: Path, broker: Mosquitto
) -> None:
    judge = Judge(tmp_path / "judge.db", broker.port, "dev")
    judge.acking = False
    with running(judge):
        async with linked(Rig(tmp_path, broker.url, ack_timeout_s=3600.0)) as rig:
            await rig.fill(5)
            await eventually(lambda: len(judge.seqs("x.segments")) == 5, "all are out")
            await rig.link.restart("")
            await eventually(lambda: judge.repeats == 5, "all came again")
            judge.acknowledge()
            await emptied(rig)


async def test_a_link_that_is_hung_takes_no_step_until_it_is_restarted(
    tmp_path: Path, broker: Mosquitto
) -> None:
    async with linked(Rig(tmp_path, broker.url, ack_from="broker")) as rig:
        await eventually(lambda: rig.link.connected_since, "connected")
        rig.link.hang(3600.0)
        await eventually(lambda: not rig.link.connected_since, "it hangs")
        steps = rig.link.steps
        await rig.fill(5)
        assert not rig.link.rests, "it owes a step"
        assert rig.link.steps == steps
        assert await rig.held() == 5
        await rig.link.restart("")
        await emptied(rig)

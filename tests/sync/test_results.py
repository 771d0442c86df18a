"""Results over a real Mosquitto: what nobody reads costs little, what is asked is told."""

import asyncio
import math
from collections import Counter
from pathlib import Path
from typing import Any

import msgspec
import pytest

from agent.protocol.commands import Result
from agent.store.journal import End
from agent.store.linkstate import Orders as Ordered
from agent.sync import readers
from agent.sync.budget.pace import OVERHEAD_BYTES
from agent.sync.mqtt.connection import Connection
from tests.outside import Mosquitto
from tests.sync.controller import ROOT, Controller
from tests.sync.rig import Rig, eventually
from tests.sync.test_orders import commanded, none_untold


class Sent:
    """What goes out over the link."""

    def __init__(self) -> None:
        self.payloads: list[bytes] = []

    def ends(self) -> Counter[str]:
        """How often the end of each command was told."""
        told = (msgspec.json.decode(one, type=Result) for one in self.payloads)
        return Counter(one.id for one in told if one.ended)


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> Sent:
    """What goes to the topic of results."""
    found, publish = Sent(), Connection.publish

    async def spied(self: Connection, topic: str, payload: bytes, **more: Any) -> Any:
        if topic == f"{ROOT}/result":
            found.payloads.append(payload)
        return await publish(self, topic, payload, **more)

    monkeypatch.setattr(Connection, "publish", spied)
    return found


async def test_what_nobody_reads_is_told_once_and_then_one_of_it_each_round(
    tmp_path: Path, broker: Mosquitto, sent: Sent, monkeypatch: pytest.MonkeyPatch
) -> None:
    rig, each = Rig(tmp_path, broker.url), [f"n{n}" for n in range(12)]
    async with rig.store:
        async with commanded(rig, tmp_path) as doors:
            for name in each:
                await doors.order(name)
            await eventually(lambda: len(sent.ends()) == 12, "each is told")
            await doors.order("last")
            await eventually(lambda: sent.ends()["last"], "and a new one")
            assert sent.ends() == Counter([*each, "last"])
        sent.payloads.clear()
        monkeypatch.setattr(readers, "AGAIN_S", 0.02)
        rig.configure(broker.url)
        async with commanded(rig, tmp_path):
            await eventually(lambda: sent.ends().total() >= 5, "it is looked for readers")
        assert sent.ends().keys() == {"n0"}


async def test_all_is_told_as_soon_as_somebody_is_there_who_reads(
    tmp_path: Path, broker: Mosquitto
) -> None:
    rig = Rig(tmp_path, broker.url)
    async with rig.store, commanded(rig, tmp_path) as doors:
        for n in range(250):
            await doors.order(f"n{n}", "write" if n % 2 else "nosuch" if n % 4 else "fail")
        reads = Controller(broker.port, f"{ROOT}/result")
        reads.send({"id": "now", "name": "write"})
        await eventually(lambda: reads.ends("now"), "its own order is answered")
        await eventually(lambda: reads.ends("n249") and reads.ends("n0"), "and the others are told")
        await none_untold(rig)
        reads.stop()


async def test_an_answer_waits_for_no_pause_and_what_nobody_asked_for_does(
    tmp_path: Path, broker: Mosquitto, sent: Sent
) -> None:
    rig = Rig(tmp_path, broker.url, rate_bytes_per_s_max=20_000)
    reads = Controller(broker.port, f"{ROOT}/result")
    async with rig.store, commanded(rig, tmp_path) as doors:
        rig.pace.order(Ordered(math.inf))
        for n in range(3):
            await doors.order(f"n{n}")
        reads.send({"id": "asked", "name": "write"})
        reads.send({"id": "refused", "name": "nosuch"})
        await eventually(lambda: reads.ends("asked") and reads.ends("refused"), "both are told")
        assert sent.ends().keys() == {"asked", "refused"}
        assert rig.pace.quota.day.used_bytes > sum(map(len, sent.payloads)) + 2 * OVERHEAD_BYTES
        rig.pace.order(Ordered())
        await eventually(lambda: all(reads.ends(f"n{n}") for n in range(3)), "the others go on")
        await none_untold(rig)
    reads.stop()


async def test_an_answer_to_an_order_of_before_a_restart_waits_for_no_pause(
    tmp_path: Path, broker: Mosquitto
) -> None:
    rig = Rig(tmp_path, broker.url)
    gives = Controller(broker.port)
    async with rig.store:
        async with commanded(rig, tmp_path) as doors:
            await doors.order("n0")
            for name in ("before", "after"):
                gives.send({"id": name, "name": "wait"})
            while len(await rig.store.journal.open()) < 2:
                await asyncio.sleep(0.02)
        first = (await rig.store.journal.open())[0]
        await rig.store.journal.end(first.number, End(state="succeeded"))
        reads = Controller(broker.port, f"{ROOT}/result")
        rig.configure(broker.url)
        rig.pace.order(Ordered(math.inf))
        async with commanded(rig, tmp_path) as doors:
            await eventually(lambda: reads.ends("before"), "what ended meanwhile is told")
            doors.gate.set()
            await eventually(lambda: reads.ends("after"), "and what ends now")
            assert not reads.ends("n0")
        reads.stop()
    gives.stop()


async def test_nothing_that_nobody_asked_for_goes_above_the_quota_and_all_of_it_is_counted(
    tmp_path: Path, broker: Mosquitto, sent: Sent
) -> None:
    rig = Rig(tmp_path, broker.url, quota_bytes_per_day=1 << 20)
    reads = Controller(broker.port, f"{ROOT}/result")
    async with rig.store, commanded(rig, tmp_path) as doors:
        before = rig.pace.sent_bytes
        await doors.order("first")
        await eventually(lambda: sent.ends()["first"], "there is some left")
        counted = len(sent.payloads) * OVERHEAD_BYTES + sum(map(len, sent.payloads))
        assert rig.pace.sent_bytes - before >= counted
        rig.pace.quota.spend(1 << 20)
        await doors.order("second")
        reads.send({"id": "asked", "name": "write"})
        await eventually(lambda: reads.ends("asked"), "who asked is answered")
        assert not sent.ends()["second"]
    reads.stop()


async def test_what_is_wanted_at_its_own_place_is_told_there_though_nobody_reads_results(
    tmp_path: Path, broker: Mosquitto
) -> None:
    rig = Rig(tmp_path, broker.url)
    reads = Controller(broker.port, "answers/#")
    async with rig.store:
        async with commanded(rig, tmp_path) as doors:
            await doors.order("n0")
            for n in range(3):
                reads.send({"id": f"w{n}", "name": "wait"}, (f"answers/{n}", b""))
            while len(await rig.store.journal.open()) < 3:
                await asyncio.sleep(0.02)
        for one in await rig.store.journal.open():  # as they do while the link is away
            await rig.store.journal.end(one.number, End(state="succeeded"))
        rig.configure(broker.url)
        async with commanded(rig, tmp_path):
            await eventually(lambda: all(reads.ends(f"w{n}") for n in range(3)), "told there")
    reads.stop()

"""A device that is out of the fleet: no selection has it, and no rollout waits for it."""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from agent.clock import Clock
from agent.protocol.commands import Result
from agent.protocol.presence import Presence
from fleet.control import base, book, driving, known, retired, rollouts
from fleet.control.lease import Lease
from fleet.control.orders import Wish, made
from fleet.control.plan import Plan
from fleet.store.database import Database, Transaction
from tests.fleet.cluster import Cluster
from tests.fleet.control.rig import ControlProcess, asked, document, fleet, happens
from tests.fleet.control.test_rollouts import BACK, Hall
from tests.outside import Mosquitto, running
from tests.sim.commanded import Commanded, Crew


async def test_a_rollout_ends_without_the_one_that_was_scrapped(tmp_path: Path, url: str) -> None:
    broker = Mosquitto(tmp_path)
    control = ControlProcess(tmp_path, broker.url, url)
    where = ("--database", url)
    with running(broker, control):
        async with Crew([Commanded("press-1", broker.url)]) as crew:
            await fleet("tag", "add", "hall", "press-1", "scrap", *where)

            async def there() -> bool:
                found = (await document("devices", *where))["devices"]
                return any(one["online"] for one in found)

            await happens(there, "the device is there")
            gone = {
                "scrap": Presence(
                    device="scrap", version="1", epoch="e", ack_from="ingest", online=False
                )
            }
            await asked(url, lambda one: known.presences(one, gone, 1))
            await fleet("rollout", "start", "x", "--tag", "hall", "--id", "r-1", *where)

            async def state(of: str = "r-1") -> Any:
                return (await document("rollout", "show", of, *where))["state"]

            async def half() -> bool:
                told = await document("rollout", "show", "r-1", *where)
                return bool(told["counts"]["good"] and told["away"] == ["scrap"])

            await happens(half, "the other one has it")
            assert await state() == "running", "it waits"
            done = await fleet("devices", "retire", "scrap", *where)
            assert (done.returncode, done.stdout) == (0, "retired: scrap\n"), done.stderr

            async def over() -> bool:
                return await state() == "finished"

            await happens(over, "it waits no more")
            assert (await document("rollout", "show", "r-1", *where))["counts"]["missed"] == 1
            assert crew.effects == {("press-1", "r-1"): 1}


async def test_no_selection_has_it_until_it_is_reinstated(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/fleet.db"
    where = ("--database", url)
    await fleet("tag", "add", "hall", "d1", "d2", *where)
    await fleet("send", "x", "--device", "d2", "--id", "open", *where)
    await fleet("send", "y", "--device", "d2", "--id", "stick", "--out", str(tmp_path), *where)
    assert (await fleet("devices", "retire", "d3", *where)).returncode == 1, "a slip of the hand"
    assert (await document("devices", "retire", "d2", *where)) == {"retired": ["d2"]}
    assert (await fleet("devices", "retire", "d2", *where)).returncode == 0, "it is"

    async def meant(*which: str) -> list[str]:
        told = await document("send", "x", *which, *where)
        return [one["device"] for one in told["commands"]]

    assert await meant("--all") == await meant("--tag", "hall") == ["d1"]
    told = await document("twin", "set", "{}", "--all", *where)
    assert [one["device"] for one in told["twins"]] == ["d1"]
    for command in (("send", "x"), ("twin", "set", "{}"), ("rollout", "start", "x")):
        done = await fleet(*command, "--device", "d1", "--device", "d2", *where)
        assert (done.returncode, "retired: d2" in done.stderr) == (1, True), command
    kept = await asked(url, lambda one: book.found(one, devices=["d2"]))
    assert {(one.id, one.state, one.message) for one in kept} == {
        ("open", "withdrawn", "the device was retired"),
        ("stick", "withdrawn", "the device was retired"),
    }
    listed = {
        one["device"]: one["retired"] for one in (await document("devices", *where))["devices"]
    }
    assert listed == {"d1": False, "d2": True}
    shown = (await fleet("devices", *where)).stdout
    assert ("1 retired" in shown, "retired" in (await fleet("status", "d2", *where)).stdout) == (
        True,
        True,
    )
    await fleet("devices", "reinstate", "d2", *where)
    assert await meant("--all") == ["d1", "d2"]
    assert msgspec.json.encode(await document("devices", *where)).count(b"true") == 0


async def test_the_word_of_a_retired_device_opens_nothing_again(url: str) -> None:
    where = ("--database", url)
    await fleet("tag", "add", "hall", "d1", "d2", *where)
    await fleet("rollout", "start", "x", "--tag", "hall", "--id", "r-1", *where)

    async def say(device: str, state: str, now_us: int = 10**15) -> dict[str, Any]:
        told = {"id": "r-1", "name": "x", "device": device, "state": state}

        async def hear(one: Transaction) -> None:
            await book.heard(one, [msgspec.convert(told, Result)], now_us, now_us)
            await driving.drive(one, "r-1", now_us)

        await asked(url, hear)
        found: dict[str, Any] = await document("rollout", "show", "r-1", *where)
        return found

    await say("d1", "succeeded")
    assert (await say("d2", "running"))["counts"]["in_flight"] == 1
    await fleet("devices", "retire", "d2", *where)
    told = await say("d2", "running")
    assert (told["state"], told["counts"]["missed"]) == ("finished", 1), "nobody waits for it"
    (kept,) = await asked(url, lambda one: book.found(one, devices=["d2"]))
    assert (kept.state, kept.message) == ("withdrawn", "the device was retired")
    assert await asked(url, lambda one: book.due(one, 2 * 10**15, 10)) == []
    listed = (await document("devices", *where))["devices"]
    assert {one["device"]: one["open"] for one in listed} == {"d1": 0, "d2": 0}
    assert (await say("d2", "succeeded"))["counts"]["good"] == 2, "its last word stands"


async def test_a_way_back_to_a_retired_device_has_not_failed(url: str) -> None:
    async with base.open(url) as database:
        hall = Hall(database, 2)
        await hall.start(counts="2", back="model.rollback", back_on="failed", failures_max=1.0)
        await hall.say("failed", *hall.members)
        assert (told := (await hall.report()).back) and told.counts["open"] == 2
        async with database.begin() as one:
            await retired.retire(one, hall.members[:1], hall.now_us)
        await hall.say("refused", hall.members[1], id_=BACK)
        assert (told := (await hall.report()).back)
        assert (told.counts, [one.device for one in told.failed]) == (
            {"succeeded": 0, "failed": 1, "open": 0},
            hall.members[1:],
        )


Work = Callable[[Transaction], Awaitable[Any]]


async def beside(database: Database, first: Work, second: Work) -> None:
    """Do both: the second begins while the first is not committed, and waits for it."""

    async def follow() -> None:
        async with database.begin() as one:
            await second(one)

    async def waits() -> bool:
        async with database.begin() as one:
            return bool(await one.fetch("SELECT 1 FROM pg_locks WHERE NOT granted"))

    async with database.begin() as one:
        await first(one)
        following = asyncio.create_task(follow())
        try:
            await happens(waits, "the second waits for the first")
        except AssertionError:
            following.cancel()
            raise
    await following


@pytest.mark.parametrize("what", ["an order", "a rollout's turn"])
async def test_who_is_retired_meanwhile_has_nothing_open(cluster: Cluster, what: str) -> None:
    """PostgreSQL alone does two things at a time."""
    now_us = 1_000
    (order,) = made(Wish(name="x", id="r-1"), ["d"], 1.0)
    async with base.open(cluster.new()) as database:
        assert await Lease(database, Clock(), "it", 10.0).tend()

        async def retire(one: Transaction) -> None:
            await retired.retire(one, ["d"], now_us)

        async def turn(one: Transaction) -> None:
            await driving.drive(one, "r-1", now_us)

        async def give(one: Transaction) -> None:
            await book.add(one, [order], now_us)

        if what == "an order":
            await beside(database, give, retire)
        else:
            away = Presence(device="d", version="1", epoch="e", ack_from="ingest", online=False)
            async with database.begin() as one:
                await known.presences(one, {"d": away}, now_us)
                planned = Plan(name="x", bounds=[1])
                await rollouts.start(one, "r-1", planned, [order], [], now_us)
            here = msgspec.structs.replace(away, online=True)
            async with database.begin() as one:
                await known.presences(one, {"d": here}, now_us)
            await beside(database, retire, turn)
        async with database.begin() as one:
            (kept,) = await book.found(one)
        assert (kept.state, kept.ended_us) == ("withdrawn", now_us)

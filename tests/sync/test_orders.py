"""Commands over a real Mosquitto: taken once they are kept, told until somebody has the result."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from agent.commands.catalogue import Catalogue
from agent.commands.desk import Desk
from agent.commands.trust import Rules
from agent.errors import StoreError
from agent.known_time import KnownTime
from agent.protocol.commands import Command, Order
from agent.protocol.topics import Topics
from agent.sync.orders import Orders
from tests.commands.rig import Effects
from tests.outside import Mosquitto
from tests.sync.controller import ROOT, Controller
from tests.sync.rig import Rig, eventually, live


@pytest.fixture
def controller(broker: Mosquitto) -> Any:
    found = Controller(broker.port, f"{ROOT}/result", "answers/#")
    yield found
    found.stop()


class Doors(Effects):
    """The effects, and the desk for the other doors."""

    desk: Desk

    async def order(self, id: str, name: str = "write") -> None:
        """By HTTP; returns once it has ended."""
        said = await self.desk.order(Order(Command(id=id, name=name)), "http")
        assert said.ended or (await self.desk.ended(id, 20)).ended


@asynccontextmanager
async def commanded(rig: Rig, folder: Path) -> AsyncIterator["Doors"]:
    """The link runs over the open store, with a desk."""
    effects = Doors(folder / "effects")
    desk = Desk(
        *(rig.store.journal, Catalogue(effects.verbs()), Rules("dev", "never", ())),
        *(KnownTime(folder / "known-time.json", rig.clock), rig.clock),
    )
    topics = Topics("holdfast/v1", "dev")
    rig.link.join(Orders(desk, rig.store.journal, topics, rig.pace, rig.clock))
    effects.desk = desk
    running = asyncio.create_task(desk.run())
    async with live(rig):
        await eventually(lambda: rig.link.connected_since is not None, "the link is up")
        yield effects
    running.cancel()
    await asyncio.wait([running])


async def none_untold(rig: Rig) -> None:
    while any(await rig.store.journal.untold(10)):
        await asyncio.sleep(0.05)


async def test_an_order_is_told_from_its_beginning_to_its_end(
    tmp_path: Path, broker: Mosquitto, controller: Controller
) -> None:
    rig = Rig(tmp_path, broker.url)
    async with rig.store, commanded(rig, tmp_path) as effects:
        reply = ("answers/one", b"\0which")
        controller.send({"id": "a", "name": "write", "args": {"line": "x"}}, reply)
        await eventually(lambda: len(controller.ends("a")) == 2, "both are told")
        told = [(topic, one.state, data) for topic, one, data in controller.results if one.ended]
        assert set(told) == {
            (f"{ROOT}/result", "succeeded", b""),
            ("answers/one", "succeeded", b"\0which"),
        }
        assert effects.lines() == ["a:x"]
        controller.send({"id": "a", "name": "write", "args": {"line": "x"}})
        await eventually(lambda: len(controller.ends("a")) == 3, "whoever asks again is told")
        assert effects.lines() == ["a:x"]
        assert (await rig.store.ledger.balances())["commands"].produced == 1


async def test_what_cannot_be_taken_is_refused_and_told(
    tmp_path: Path, broker: Mosquitto, controller: Controller
) -> None:
    rig = Rig(tmp_path, broker.url)
    async with rig.store, commanded(rig, tmp_path) as effects:
        controller.send(b"not json")
        controller.send({"id": "b", "name": "nosuch"})
        controller.send({"id": "c", "name": "write", "args": {"line": 1}})
        controller.send({"id": "d", "name": "write"})
        await eventually(
            lambda: (
                len(controller.results) >= 4 and sum(r[1].ended for r in controller.results) == 4
            ),
            "all",
        )
        said = {one.id: one.reason for _, one, _ in controller.results if one.ended}
        assert said == {"": "unreadable", "b": "unknown_command", "c": "bad_args", "d": ""}
        assert effects.lines() == ["d:x"]


async def test_what_was_ordered_while_it_was_away_is_done_once(
    tmp_path: Path, broker: Mosquitto, controller: Controller
) -> None:
    rig = Rig(tmp_path, broker.url)
    async with rig.store:
        async with commanded(rig, tmp_path):
            controller.send({"id": "first", "name": "write"})
            await eventually(lambda: controller.ends("first"), "it has a session")
        for n in range(30):
            controller.send({"id": f"n{n}", "name": "write"})
        rig.configure(broker.url)
        async with commanded(rig, tmp_path) as effects:
            await eventually(lambda: all(controller.ends(f"n{n}") for n in range(30)), "all told")
            assert effects.lines() == ["first:x", *(f"n{n}:x" for n in range(30))]


async def test_what_the_store_did_not_take_comes_again(
    tmp_path: Path, broker: Mosquitto, controller: Controller
) -> None:
    rig = Rig(tmp_path, broker.url)
    async with rig.store:
        async with commanded(rig, tmp_path):
            controller.send({"id": "first", "name": "write"})
            await eventually(lambda: controller.ends("first"), "it has a session")
            asked = asyncio.Event()

            async def refuse(_: object) -> None:
                asked.set()
                raise StoreError("the disk is away")

            accept, rig.store.journal.accept = rig.store.journal.accept, refuse  # type: ignore
            controller.send({"id": "a", "name": "write"})
            await asyncio.wait_for(asked.wait(), 20)
        rig.store.journal.accept = accept  # type: ignore[method-assign]
        rig.configure(broker.url)
        async with commanded(rig, tmp_path) as effects:
            await eventually(lambda: controller.ends("a"), "the broker had kept it")
            assert effects.lines() == ["first:x", "a:x"]


async def test_a_place_that_somebody_names_is_told_once_and_whoever_reads_there_has_it(
    tmp_path: Path, broker: Mosquitto
) -> None:
    rig = Rig(tmp_path, broker.url, ack_timeout_s=60.0)  # in one connection
    reads = Controller(broker.port, "answers/#")  # and no result
    async with rig.store, commanded(rig, tmp_path):
        for n in range(150):
            reads.send({"id": f"n{n}", "name": "diag"}, ("answers/all", str(n).encode()))
        for n in range(150):
            reads.send({"id": f"w{n}", "name": "write"}, ("answers/all", b""))
        await eventually(lambda: all(reads.ends(f"w{n}") for n in range(150)), "all are told")
        refused = [one for _, one, _ in reads.results if one.state == "refused"]
        assert sorted(one.id for one in refused) == sorted(f"n{n}" for n in range(150))
        assert all(len(reads.ends(f"w{n}")) == 1 for n in range(150))
        await asyncio.wait_for(none_untold(rig), 20)
    reads.stop()


async def test_a_topic_that_the_broker_does_not_like_cuts_the_link_once_at_most(
    tmp_path: Path, broker: Mosquitto, controller: Controller
) -> None:
    rig = Rig(tmp_path, broker.url)
    async with rig.store, commanded(rig, tmp_path):
        controller.send({"id": "deep", "name": "write"}, ("a/" * 250 + "a", b""))
        controller.send({"id": "sys", "name": "write"}, ("$SYS/broker/uptime", b""))
        controller.send({"id": "after", "name": "write"})
        for name in ("deep", "sys", "after"):
            await eventually(lambda name=name: controller.ends(name), f"{name} is told")


async def test_a_result_waits_until_somebody_reads_it(tmp_path: Path, broker: Mosquitto) -> None:
    deaf = Controller(broker.port)
    rig = Rig(tmp_path, broker.url)
    async with rig.store:
        async with commanded(rig, tmp_path) as effects:
            deaf.send({"id": "a", "name": "write"})
            await eventually(lambda: effects.lines() == ["a:x"], "it is done")
        deaf.stop()
        assert len((await rig.store.journal.untold(10))[0]) == 1
        hears = Controller(broker.port, f"{ROOT}/result")
        rig.configure(broker.url)
        async with commanded(rig, tmp_path):
            await eventually(lambda: hears.ends("a"), "it is told")
            await asyncio.wait_for(none_untold(rig), 20)
        hears.stop()

"""What makes no sense is told and left; it holds up nothing."""

import asyncio

import msgspec

from agent.clock import Clock
from agent.protocol.commands import RESULT_BYTES_MAX, Result
from agent.protocol.presence import Presence
from fleet.control import base, book, known
from fleet.control.hearing import Hearing
from fleet.control.lease import Lease
from fleet.control.metrics import Metrics
from fleet.control.orders import Wish, made
from fleet.mqtt.connection import Message
from fleet.store.database import Database
from tests.fleet.control.rig import happens

ROOT = "holdfast/v1"


def result(**settings: object) -> dict[str, object]:
    return {"id": "o-1", "name": "x", "device": "d1", "state": "succeeded", **settings}


def presence(device: str = "d1", version: str = "1") -> bytes:
    word = Presence(device=device, online=True, epoch="e", version=version, ack_from="ingest")
    return msgspec.json.encode(word)


NONSENSE: dict[str, tuple[str, bytes]] = {
    "not JSON": ("d1/result", b"\xff{"),
    "no result": ("d1/result", b"[1]"),
    "no state of any": ("d1/result", msgspec.json.encode(result(state="done"))),
    "of another device": ("d1/result", msgspec.json.encode(result(device="d2"))),
    "too large": ("d1/result", msgspec.json.encode(result(result="x" * RESULT_BYTES_MAX))),
    "nested too deep": ("d1/result", b'{"result":' * 100_000),
    "an unknown id": ("d1/result", msgspec.json.encode(result(id="nobody's"))),
    "an id that is none": ("d1/result", msgspec.json.encode(result(id="\0" * 300))),
    "no presence": ("d1/presence", b"{}"),
    "somebody else's presence": ("d1/presence", presence("d2")),
    "no document": ("d1/twin/reported", b'"x"'),
    "another door": ("d1/nothing", b""),
    "no door": ("", b""),
    "no device": ("+/result", msgspec.json.encode(result())),
    "a name of no text": ("d1\0/presence", presence("d1\0")),
}


async def hear(database: Database, *messages: tuple[str, bytes]) -> int:
    """How many were PUBACKed."""
    lease, taken = Lease(database, Clock(), "us", 3600.0), []
    assert await lease.tend()
    hearing = Hearing(lease, Clock(), Metrics(), ROOT, 60.0, lambda _: None)
    for topic, payload in messages:
        hearing.heard(Message(f"{ROOT}/{topic}", payload, lambda: taken.append(1)))
    task = asyncio.create_task(hearing.run())

    async def all_taken() -> bool:
        if task.done():
            task.result()
        return len(taken) == len(messages)

    await happens(all_taken, "all is taken")
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    return len(taken)


async def test_nonsense_changes_nothing_and_holds_up_nothing(url: str) -> None:
    async with base.open(url) as database:
        async with database.begin() as one:
            await book.add(one, made(Wish(name="x", id="o-1"), ["d1", "d2"], 1.0), 1)
        await hear(database, *NONSENSE.values())
        async with database.begin() as one:
            assert {each.state for each in await book.found(one)} == {"waiting"}
            assert {each.online for each in await known.devices(one)} == {None}
        good = ("d1/result", msgspec.json.encode(result(message="fi\0ne \x1b[2J", progress=7.0)))
        await hear(database, *NONSENSE.values(), good, *NONSENSE.values())
        async with database.begin() as one:
            (done,) = await book.found(one, states=["succeeded"])
        assert (done.device, done.progress) == ("d1", 1.0)
        assert done.message.isprintable()
        assert done.result and msgspec.json.decode(done.result, type=Result).message.startswith(
            "fi"
        )


async def test_one_that_the_database_cannot_take_costs_no_other(url: str) -> None:
    async with base.open(url) as database:
        odd = ("d1/presence", presence(version="\ud800".encode(errors="replace").decode()))
        long = ("d" * 200 + "/presence", presence("d" * 200, "v" * 10_000))
        await hear(database, odd, long, ("d2/presence", presence("d2")))
        async with database.begin() as one:
            assert "d2" in {each.device for each in await known.devices(one)}

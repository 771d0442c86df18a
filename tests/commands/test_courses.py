"""How far the twin is: what counts as a try, which numbers orders have, what a document begins."""

import asyncio
from pathlib import Path
from typing import Any

import msgspec
import pytest
from msgspec import Struct

from agent.clock import Clock
from agent.commands import twin as module
from agent.commands.courses import Tries
from agent.commands.twin import Aspect, Twin
from agent.commands.verb import Call, again
from agent.errors import HoldfastError, NotNow
from agent.protocol.commands import Result
from agent.protocol.signing import Key
from agent.protocol.twin import Desired, Wanted, decode, sign
from tests.commands.rig import Rig, rig
from tests.commands.test_twin import House, soon, standing, twinned
from tests.sync.rig import eventually

__all__ = ["soon"]  # a fixture of all tests here


def ended(tries: Tries, reason: str) -> float:
    """The pause after an order ended so."""
    state: Any = "refused" if reason == "full" else "failed"
    tries.end(Result(id="a", name="x", device="dev", state=state, reason=reason, message="so"))
    return tries.pause_s(60.0, 600.0)


def test_what_cannot_be_done_now_is_no_try_and_the_pauses_grow_to_the_longest() -> None:
    tries = Tries()
    pauses = [ended(tries, reason) for reason in ("not_now", "full") * 4]
    assert pauses == [60.0, 120.0, 240.0, 480.0, 600.0, 600.0, 600.0, 600.0]
    assert (tries.count, tries.steps) == (0, 0)
    assert ended(tries, "failed") == 60.0
    assert ended(tries, "not_now") == 60.0, "they begin anew"
    assert ended(tries, "failed") == 600.0
    assert (tries.count, tries.steps) == (2, 2)
    tries.waits = 10**6
    assert tries.pause_s(60.0, 600.0) == 600.0


async def test_what_cannot_be_done_now_is_ordered_until_it_can(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "STEPS_MAX", 4)
    house, asked = House(), list[str]()
    house.fault = NotNow("safe mode")
    async with twinned(tmp_path, house) as (twin, one):
        one.desk.listeners.append(lambda result: asked.append(result.id) if result.ended else None)
        await twin.want(Wanted(Desired(version=1, state={"wall": "red"})))
        await eventually(lambda: len(asked) > 6, "it is tried on")
        house.fault = None
        await eventually(lambda: standing(twin) == "converged", "it is red")
        assert house.painted == ["red"]


async def test_what_fails_has_its_tries_and_no_more_though_it_could_not_be_done_in_between(
    tmp_path: Path,
) -> None:
    class Bad(House):
        asked = failed = 0

        async def paint(self, args: Any, call: Call) -> Any:
            self.asked += 1
            if self.asked % 2 == 0:
                raise NotNow("another version is on trial")
            self.failed += 1
            raise HoldfastError("taken back: the link was not there")

    house = Bad()
    async with twinned(tmp_path, house) as (twin, _):
        await twin.want(Wanted(Desired(version=1, state={"wall": "red"})))
        await eventually(lambda: house.failed == module.TRIES_MAX, "it is tried")
        await eventually(lambda: standing(twin) == "failed", "and told")
        house.wall = "green"
        await eventually(lambda: twin.shown().state["wall"].actual == "green", "looked at again")
        assert house.asked == 2 * module.TRIES_MAX - 1


@pytest.mark.parametrize("versions", [[7], [7, 9]])
async def test_a_signed_document_has_tries_of_its_own(tmp_path: Path, versions: list[int]) -> None:
    """Unsigned ones came before it, one of them with its version, and wanted the same."""
    house, key = House(), Key.kept(tmp_path / "k")
    async with twinned(tmp_path, house, signed="grave", keys=[key.public]) as (twin, one):
        for n, version in enumerate(versions, 1):
            await twin.want(Wanted(Desired(version=version, state={"wall": "red"}, device="dev")))
            last = f"twin.{version}.wall.{n * module.TRIES_MAX}"

            def given_up(last: str = last) -> bool:
                shown = twin.shown().state.get("wall")
                return shown is not None and (shown.standing, shown.command) == ("failed", last)

            await eventually(given_up, "not signed")
        wanted = Desired(version=7, state={"wall": "red"}, device="dev")
        await twin.want(decode(sign(wanted, key)))
        await eventually(lambda: standing(twin, 7) == "converged", "it is red")
        assert house.painted == ["red"]
        refused = await one.store.journal.refusals(100)
        assert {row.reason for row in refused} == {"not_signed"}


async def test_what_nobody_signed_is_not_ordered_in_the_name_of_a_signer_who_comes_meanwhile(
    tmp_path: Path,
) -> None:
    house, key = House(), Key.kept(tmp_path / "k")
    waits, goes_on = asyncio.Event(), asyncio.Event()
    async with twinned(tmp_path, house, signed="grave", keys=[key.public]) as (twin, one):
        put = one.store.twin.put

        async def slow(name: str, body: bytes) -> None:
            if name == "tries":
                waits.set()
                await goes_on.wait()
            await put(name, body)

        one.store.twin.put = slow  # type: ignore[method-assign]
        await twin.want(Wanted(Desired(version=9, state={"wall": "black"}, device="dev")))
        await waits.wait()
        wanted = Desired(version=3, state={"wall": "red"}, device="dev")
        await twin.want(decode(sign(wanted, key)))
        goes_on.set()
        await eventually(lambda: standing(twin, 3) == "converged", "it is red")
        assert house.painted == ["red"]


class Named(Struct, frozen=True):
    """Which part."""

    name: str


class Parts:
    """Two parts of one aspect; `gate` holds the second one up."""

    def __init__(self) -> None:
        self.done = {"a": 0, "b": 0}
        self.ran: list[tuple[str, str]] = []
        self.gate = asyncio.Event()

    async def put(self, args: Named, call: Call) -> None:
        self.ran.append((args.name, call.id))
        if args.name == "b":
            await self.gate.wait()
        self.done[args.name] = 1

    async def actual(self) -> Any:
        return dict(self.done)

    def aspect(self) -> Aspect:
        return Aspect(
            *("parts", self.actual, lambda wanted, now: any(now[k] != wanted[k] for k in wanted)),
            lambda wanted, _: ("put", {"name": next(iter(wanted))}),
            parts=lambda wanted: {name: {name: one} for name, one in wanted.items()},
        )

    def twin(self, one: Rig, kept: Any) -> Twin:
        one.desk.catalogue._verbs["put"] = again("put", "Put.", Named, self.put)
        return Twin("dev", [self.aspect()], kept, one.desk, lambda _: None, Clock())


class Killed:
    """What the twin keeps, until the power goes: as soon as both were ordered."""

    def __init__(self, one: Rig) -> None:
        self._one = one
        self.get = one.store.twin.get

    async def put(self, key: str, body: bytes) -> None:
        if len(await self._one.store.journal.page(None, 2)) == 2:
            await asyncio.Event().wait()
        await self._one.store.twin.put(key, body)


async def ended_now(task: "asyncio.Task[None]") -> None:
    task.cancel()
    await asyncio.wait([task])
    assert task.cancelled()


async def test_killed_after_it_ordered_it_gives_no_number_twice(tmp_path: Path) -> None:
    parts = Parts()
    async with rig(tmp_path) as one:
        twin = parts.twin(one, Killed(one))
        await twin.want(Wanted(Desired(version=1, state={"parts": {"a": 1, "b": 1}})))
        task = asyncio.create_task(twin.run())
        await eventually(lambda: parts.done["a"] and len(parts.ran) == 2, "one done, one runs")
        await ended_now(task)
        twin = parts.twin(one, one.store.twin)
        task = asyncio.create_task(twin.run())
        await eventually(lambda: twin.shown().state, "it looks")
        assert twin.shown().state["parts"].standing == "converging"
        parts.gate.set()
        await eventually(lambda: twin.shown().state["parts"].standing == "converged", "all done")
        assert sorted(parts.ran) == [("a", "twin.1.parts.1"), ("b", "twin.1.parts.2")]
        assert await one.store.journal.refusals(10) == []
        await ended_now(task)


async def test_what_an_older_version_kept_of_a_signed_document_counts_on(tmp_path: Path) -> None:
    """It did not say who had signed it; what was changed on the device since stays."""
    house, key = House(), Key.kept(tmp_path / "k")
    signed: dict[str, Any] = {"signed": "grave", "keys": [key.public]}
    document = decode(sign(Desired(version=7, state={"wall": "red"}, device="dev"), key))
    async with twinned(tmp_path, house, **signed) as (twin, _):
        await twin.want(document)
        await eventually(lambda: standing(twin, 7) == "converged", "red")
        house.wall = "green"
        await eventually(lambda: standing(twin) == "conflict", "conflict")
    async with rig(tmp_path, **signed) as one:
        kept = msgspec.json.decode(await one.store.twin.get("tries") or b"")
        for course in kept.values():
            del course["by"]
        await one.store.twin.put("tries", msgspec.json.encode(kept))
    async with twinned(tmp_path, house, **signed) as (twin, _):
        house.wall = "blue"
        await eventually(lambda: "blue" in str(twin.reported), "it has looked")
    assert house.painted == ["red"]

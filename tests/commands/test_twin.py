"""The twin: what is wanted is brought about once; what the device changes is told."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from msgspec import Struct

from agent.clock import Clock
from agent.commands import aspects
from agent.commands import twin as module
from agent.commands.trust import Refused, known
from agent.commands.twin import Aspect, Twin
from agent.commands.verb import Call, again
from agent.commands.verbs.models import Activate
from agent.errors import HoldfastError, NotNow, RequestError
from agent.protocol.commands import Command
from agent.protocol.commands import decode as order_of
from agent.protocol.commands import sign as signed_order
from agent.protocol.signing import Key
from agent.protocol.twin import AspectShown, Desired, Wanted, decode, sign
from agent.store.journal import Limits
from agent.updates.slots.shown import Running
from tests.commands.rig import Rig, rig
from tests.commands.test_desk import Trusted
from tests.sync.rig import eventually


class Colour(Struct, frozen=True, forbid_unknown_fields=True):
    """What it is to be."""

    colour: str


class House:
    """What the twin is of: a wall, which somebody else may paint too."""

    def __init__(self) -> None:
        self.wall = "white"
        self.painted: list[str] = []
        self.fault: HoldfastError | None = None
        self.trial: asyncio.Event | None = None  # so long it is on trial, and then taken back

    async def paint(self, args: Colour, _: Call) -> Any:
        if self.fault:
            raise self.fault
        before, self.wall = self.wall, args.colour
        self.painted.append(args.colour)
        if self.trial:
            await self.trial.wait()
            self.wall = before
            raise HoldfastError("taken back: the link was not back")
        return {}

    def aspect(self, *, volatile: bool = False) -> Aspect:
        async def actual() -> Any:
            return self.wall

        def differs(wanted: Any, is_now: Any) -> bool:
            if not isinstance(wanted, str):
                raise RequestError("wall: expected a colour")
            return bool(wanted != is_now)

        command = lambda wanted, _: ("paint", {"colour": wanted})  # noqa: E731
        return Aspect("wall", actual, differs, command, volatile)


@asynccontextmanager
async def twinned(
    folder: Path,
    house: House,
    *,
    volatile: bool = False,
    also: Sequence[Aspect] = (),
    **more: Any,
) -> AsyncIterator[tuple[Twin, Rig]]:
    async with rig(folder, **more) as one:
        paint = again("paint", "Paint.", Colour, house.paint, grave=True)
        one.desk.catalogue._verbs["paint"] = paint

        def believed(by: str) -> None:
            if by:
                known(by, one.desk.rules)

        told = [house.aspect(volatile=volatile), *also]
        twin = Twin("dev", told, one.store.twin, one.desk, believed, Clock())
        task = asyncio.create_task(twin.run())
        try:
            yield twin, one
        finally:
            task.cancel()
            await asyncio.wait([task])
            if not task.cancelled() and (fault := task.exception()):
                raise fault


def standing(twin: Twin, version: int | None = None) -> str | None:
    """How the wall stands, as told of this version."""
    shown = twin.shown()
    if not shown.state or version not in (None, shown.desired_version):
        return None
    return shown.state["wall"].standing


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LOOK_S", 0.05)
    monkeypatch.setattr(module, "RETRY_S", (0.01, 0.01))


async def test_it_converges_once_and_tells(tmp_path: Path) -> None:
    house = House()
    async with twinned(tmp_path, house) as (twin, _):
        await eventually(lambda: twin.shown().state, "it tells what is")
        assert standing(twin) is None
        await twin.want(Wanted(Desired(version=1, state={"wall": "red"})))
        await eventually(lambda: standing(twin) == "converged", "it is red")
        told = twin.shown()
    async with twinned(tmp_path, house) as (twin, _):  # the retained document comes again
        await twin.want(Wanted(Desired(version=1, state={"wall": "red"})))
        await eventually(lambda: standing(twin) == "converged", "it is yet")
        assert house.painted == ["red"]
        assert twin.shown() == told
        assert (told.desired_version, told.state["wall"].actual) == (1, "red")


async def test_a_change_on_the_device_stays_and_is_told_until_the_cloud_says_more(
    tmp_path: Path,
) -> None:
    house = House()
    async with twinned(tmp_path, house) as (twin, _):
        await twin.want(Wanted(Desired(version=5, state={"wall": "red"})))
        await eventually(lambda: standing(twin) == "converged", "it is red")
        house.wall = "green"
        await eventually(lambda: standing(twin) == "conflict", "the cloud is told")
        await twin.want(Wanted(Desired(version=4, state={"wall": "black"})))  # late
        await twin.want(Wanted(Desired(version=6, state={"wall": "blue"})))
        await eventually(lambda: standing(twin, 6) == "converged", "the newer one wins")
        house.wall = "green"
        enforced = Desired(version=7, state={"wall": "blue"}, enforce=["wall"])
        await twin.want(Wanted(enforced))
        await eventually(lambda: standing(twin, 7) == "converged", "it is undone")
        for _ in range(3):
            house.wall = "green"
            await eventually(lambda: house.wall == "blue", "again and again")
    assert house.painted == ["red", "blue", "blue", "blue", "blue", "blue"]


async def test_what_cannot_be_is_tried_some_times_and_told(tmp_path: Path) -> None:
    house = House()
    house.fault = HoldfastError("no paint")
    async with twinned(tmp_path, house) as (twin, one):
        await twin.want(Wanted(Desired(version=1, state={"wall": "red", "roof": 1})))
        last = f"twin.1.wall.{module.TRIES_MAX}"
        await eventually(
            lambda: standing(twin) == "failed" and twin.shown().state["wall"].command == last,
            "it is tried, and told",
        )
        assert len(await one.store.journal.page(None, 10)) == module.TRIES_MAX
        shown = twin.shown()
        assert (shown.state["wall"].cause, shown.state["roof"].standing) == ("no paint", "unknown")
        house.wall = "red"  # somebody mends it by hand
        await eventually(lambda: standing(twin) == "converged", "seen")
        await twin.want(Wanted(Desired(version=2, state={"wall": 3})))
        await eventually(lambda: standing(twin, 2) == "failed", "nobody can want that")
        assert "expected a colour" in twin.shown().state["wall"].cause


async def test_what_cannot_be_done_now_is_tried_on(tmp_path: Path) -> None:
    house = House()
    house.fault = NotNow("somebody else paints")
    async with twinned(tmp_path, house) as (twin, one):
        await twin.want(Wanted(Desired(version=1, state={"wall": "red"})))

        def tried() -> int:
            name = twin.shown().state["wall"].command if twin.shown().state else ""
            return int(name.rpartition(".")[2] or 0)

        await eventually(lambda: tried() > module.TRIES_MAX + 1, "it is tried on")
        assert twin.shown().state["wall"].cause in ("somebody else paints", "")
        house.fault = None
        await eventually(lambda: standing(twin) == "converged", "it is red")
        assert house.painted == ["red"]
        assert len(await one.store.journal.page(None, 100)) <= module.STEPS_MAX


async def test_an_unsigned_document_orders_nothing_grave(tmp_path: Path) -> None:
    house, key = House(), Key.kept(tmp_path / "k")
    stranger = Key.kept(tmp_path / "other")
    async with twinned(tmp_path, house, signed="grave", keys=[key.public]) as (twin, _):
        await twin.want(Wanted(Desired(version=1, state={"wall": "red"})))
        await eventually(lambda: standing(twin) == "failed", "it is refused")
        assert "must be signed" in twin.shown().state["wall"].cause
        wanted = Desired(version=2, state={"wall": "red"}, device="dev")
        with pytest.raises(Refused, match="gives no orders"):
            await twin.want(decode(sign(wanted, stranger)))
        with pytest.raises(Refused, match="nobody named"):
            await twin.want(decode(sign(Desired(version=2), key)))
        await twin.want(decode(sign(wanted, key)))
        await eventually(lambda: standing(twin, 2) == "converged", "it is red")


@pytest.mark.parametrize(
    ("wanted", "command"),
    [
        ({"a": 2}, ("model.activate", {"name": "a", "version": 2})),
        (
            {"a": {"version": 2, "target": "t"}},
            ("model.install", {"target": "t", "activate": True}),
        ),
        ({"a": 1, "b": 9}, ("model.activate", {"name": "b", "version": 9})),
        ({"a": 1}, None),
        ({}, None),
    ],
)
def test_models_are_brought_to_the_versions_that_are_wanted(wanted: Any, command: Any) -> None:
    serving = {"a": 1, "c": 7}
    aspect = aspects.models(lambda: serving)
    assert aspect.differs(wanted, serving) == (command is not None)
    if command:
        assert aspect.command(wanted, serving) == command


@pytest.mark.parametrize("wanted", [[], {"a": "2"}, {"a": {"target": "t"}}, {"a b": 1}, None])
def test_what_nobody_can_want_of_models_is_told(wanted: Any) -> None:
    with pytest.raises(RequestError, match=r"twin state\.models"):
        aspects.models(dict).differs(wanted, {})


async def test_the_configuration_is_wanted_as_a_patch() -> None:
    said = {"link": {"ack_from": "broker", "batch_s": 1}, "log_level": "info"}

    async def live() -> tuple[int, dict[str, Any]]:
        return 4, said

    aspect = aspects.ConfigAspect(live).aspect()
    actual = await aspect.actual()
    assert actual == {"version": 4}
    for patch in ({}, {"log_level": "info"}, {"link": {"ack_from": "broker"}}, {"jobs": None}):
        assert not aspect.differs(patch, actual)
    for patch in ({"log_level": "debug"}, {"link": {"batch_s": None}}, {"jobs": {"jobs_max": 1}}):
        assert aspect.differs(patch, actual)
        name, args = aspect.command(patch, actual)
        assert (name, args["patch"]) == ("config.apply", patch)
    with pytest.raises(RequestError, match=r"twin state\.config"):
        aspect.differs([1], actual)


async def test_the_version_that_runs_is_told_and_cannot_be_wanted(tmp_path: Path) -> None:
    house, now = House(), [Running("1.1", on_trial=True, other="1.0")]

    async def running() -> Running:
        return now[0]

    async with twinned(tmp_path, house, also=[aspects.agent(running)]) as (twin, one):
        told = lambda: twin.shown().state.get("agent")  # noqa: E731
        await eventually(lambda: told() == AspectShown(actual=now[0]), "it is told")
        now[0] = Running("1.1", other="1.0")
        await eventually(lambda: told() == AspectShown(actual=now[0]), "and told anew")
        wanted = {"agent": {"version": "1.2"}, "wall": "red"}
        await twin.want(Wanted(Desired(version=1, state=wanted, enforce=["agent"])))
        await eventually(lambda: standing(twin, 1) == "converged", "the rest is done")
        shown = told()
        assert shown
        assert (shown.actual, shown.standing) == (now[0], "failed")
        assert "agent.update" in shown.cause
        assert [row.name for row in await one.store.journal.page(None, 10)] == ["paint"]


async def test_nobody_pins_the_twin_who_cannot_sign(tmp_path: Path) -> None:
    house, key = House(), Key.kept(tmp_path / "k")
    async with twinned(tmp_path, house, signed="grave", keys=[key.public]) as (twin, _):
        await twin.want(Wanted(Desired(version=2**53)))
        wanted = Desired(version=3, state={"wall": "red"}, device="dev")
        await twin.want(decode(sign(wanted, key)))
        await eventually(lambda: standing(twin, 3) == "converged", "the signed one counts")
        await twin.want(Wanted(Desired(version=2**53, state={"wall": "black"})))
        await eventually(lambda: standing(twin, 3) == "converged", "and still does")
    assert house.painted == ["red"]


async def test_what_a_restart_undoes_is_no_conflict(tmp_path: Path) -> None:
    house = House()
    async with twinned(tmp_path, house, volatile=True) as (twin, _):
        await twin.want(Wanted(Desired(version=1, state={"wall": "red"})))
        await eventually(lambda: standing(twin) == "converged", "it is red")
    house.wall = "white"
    async with twinned(tmp_path, house, volatile=True) as (twin, _):
        await eventually(lambda: house.wall == "red", "it is painted again")
        await eventually(lambda: standing(twin) == "converged", "and told")


def seen(twin: Twin) -> AspectShown:
    """How the wall was told to be last."""
    return twin.shown().state.get("wall", AspectShown())


async def told(twin: Twin, said: list[AspectShown]) -> None:
    """Each thing that is reported of the wall, for ever."""
    number = twin.changes.number
    while True:
        if shown := twin.shown().state.get("wall"):
            said.append(shown)
        number = await twin.changes.after(number)


@pytest.mark.parametrize("enforce", [[], ["wall"]])
async def test_what_is_on_trial_is_not_there_yet_and_what_was_taken_back_has_failed(
    tmp_path: Path, enforce: list[str]
) -> None:
    house, said = House(), list[AspectShown]()
    house.trial = asyncio.Event()
    async with twinned(tmp_path, house) as (twin, one):
        watching = asyncio.create_task(told(twin, said))
        await twin.want(Wanted(Desired(version=1, state={"wall": "red"}, enforce=enforce)))
        await eventually(lambda: seen(twin).actual == "red", "it is on trial")
        assert standing(twin) == "converging"
        house.trial.set()
        last = f"twin.1.wall.{module.TRIES_MAX}"
        await eventually(
            lambda: standing(twin) == "failed" and twin.shown().state["wall"].command == last,
            "it is tried as often as may be",
        )
        watching.cancel()
        await asyncio.wait([watching])
        assert len(await one.store.journal.page(None, 10)) == module.TRIES_MAX == 3
        assert house.painted == ["red"] * 3
    assert {shown.standing for shown in said} == {None, "converging", "failed"}
    assert {shown.cause for shown in said if shown.standing == "failed"} == {
        "taken back: the link was not back"
    }


async def test_between_two_tries_there_is_a_pause_though_it_is_enforced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "RETRY_S", (3600.0, 3600.0))
    house = House()
    house.trial = asyncio.Event()
    async with twinned(tmp_path, house) as (twin, _):
        await twin.want(Wanted(Desired(version=1, state={"wall": "red"}, enforce=["wall"])))
        await eventually(lambda: seen(twin).actual == "red", "it is on trial")
        house.trial.set()
        await eventually(lambda: standing(twin) == "failed", "it was taken back")
        house.wall = "black"
        await eventually(lambda: seen(twin).actual == "black", "it is looked at again")
        assert (house.painted, standing(twin)) == (["red"], "failed")


async def test_a_newer_document_waits_for_what_the_former_one_has_on_trial(tmp_path: Path) -> None:
    house = House()
    house.trial = asyncio.Event()
    async with twinned(tmp_path, house) as (twin, _):
        await twin.want(Wanted(Desired(version=1, state={"wall": "red"})))
        await eventually(lambda: house.wall == "red", "it is on trial")
        await twin.want(Wanted(Desired(version=2, state={"wall": "red"})))
        await eventually(lambda: standing(twin, 2) == "converging", "it is not there yet")
        trial, house.trial = house.trial, None
        trial.set()
        await eventually(lambda: standing(twin, 2) == "converged", "ordered anew")
        assert (house.wall, house.painted) == ("red", ["red", "red"])


async def test_a_signed_document_is_brought_about_when_signed_commands_are_forgotten(
    tmp_path: Path,
) -> None:
    house, key = House(), Key.kept(tmp_path / "k")
    now = datetime.now(UTC)
    plain = Command(
        id="a", name="write", device="dev", issued=now, expires=now + timedelta(hours=1)
    )
    command = order_of(signed_order(plain, key))
    more: dict[str, Any] = {"clock": Trusted(), "limits": Limits(100, 0.0), "keys": [key.public]}
    async with twinned(tmp_path, house, signed="grave", **more) as (twin, one):
        await one.desk.order(command, "mqtt")
        await one.ended("a")
        assert await one.store.journal.forget_old() == 1
        wanted = Desired(version=1, state={"wall": "red"}, device="dev")
        await twin.want(decode(sign(wanted, key)))
        await eventually(lambda: standing(twin) == "converged", "it is red")
        assert (await one.desk.order(command, "mqtt")).reason == "too_old"  # no replay comes of it


async def test_a_model_that_cannot_be_keeps_no_other_back(tmp_path: Path) -> None:
    serving, asked = {"a": 1, "b": 1}, list[str]()

    async def activate(args: Activate, _: Call) -> Any:
        asked.append(args.name)
        if args.name == "a":
            raise NotNow("golden outputs differ")
        serving[args.name] = args.version or 0

    async with rig(tmp_path) as one:
        verb = again("model.activate", "Activate.", Activate, activate)
        one.desk.catalogue._verbs["model.activate"] = verb
        aspect = aspects.models(lambda: dict(serving))
        twin = Twin("dev", [aspect], one.store.twin, one.desk, lambda _: None, Clock())
        running = asyncio.create_task(twin.run())
        await twin.want(Wanted(Desired(version=1, state={"models": {"a": 2, "b": 2}})))
        await eventually(lambda: asked.count("a") == 3 and serving["b"] == 2, "each is tried")
        await eventually(lambda: twin.shown().state["models"].standing == "failed", "and told")
        await eventually(lambda: twin.shown().state["models"].actual == {"a": 1, "b": 2}, "as is")
        assert twin.shown().state["models"].cause == "a: golden outputs differ"
        serving["b"] = 1  # somebody has the last word on one of them
        both = "a: golden outputs differ; b: changed on the device"
        await eventually(lambda: twin.shown().state["models"].cause == both, "a conflict beside it")
        assert asked.count("b") == 1
        running.cancel()
        await asyncio.wait([running])


async def test_what_each_restart_undoes_is_done_anew_after_each(tmp_path: Path) -> None:
    house = House()
    starts = module.TRIES_MAX + 2
    for n in range(starts):
        async with twinned(tmp_path, house, volatile=True) as (twin, _):
            if not n:
                await twin.want(Wanted(Desired(version=1, state={"wall": "red"})))
            await eventually(lambda n=n: len(house.painted) == n + 1, "it is painted again")
            await eventually(lambda: standing(twin) == "converged", "and told")
        house.wall = "white"
    assert house.painted == ["red"] * starts

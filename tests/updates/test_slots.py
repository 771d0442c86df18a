"""The agent's own update: killed at every instant, and failed in every state. In the end a version
runs, there is one result, and it says which version that is."""

import os
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from agent.clock import Clock
from agent.errors import NotNow
from agent.protocol import signing
from agent.updates.slots.record import Kept
from agent.updates.slots.update import Outcome, Updating
from tests.updates.rig import (
    KEY,
    NEW,
    OLD,
    Call,
    Device,
    Faults,
    Fetched,
    Ordered,
    Play,
    Points,
    children,
    fetched,
    package,
    reap,
    version,
)

LONG = os.environ.get("HOLDFAST_LONG") == "1"  # at every one of the instants
NONE = Faults()
GOOD = ["fetched", "built", "switched", "confirmed"]


@pytest.fixture(autouse=True)
def _no_child_is_left() -> Iterator[None]:
    before = children()
    yield
    reap(before)


def played(folder: Path, faults: Faults = NONE, kill_at: int = -1) -> Play:
    """An update to NEW."""
    folder.mkdir(exist_ok=True)
    device = Device(folder)
    return Play(device, updates(package(folder / "made")), faults, Points(kill_at))


def updates(path: Path, number: str = NEW) -> Ordered:
    found = fetched(path, number)

    async def order(updating: Updating, call: Call) -> Outcome:
        return await updating.update(found, call, dropped)

    return order


async def dropped(package: Fetched) -> None:
    Path(package.path).unlink()  # a name of it is left, for root


async def rolls_back(updating: Updating, call: Call) -> Outcome:
    return await updating.rollback(call)


def rolls_back_of(of: str) -> Ordered:
    async def order(updating: Updating, call: Call) -> Outcome:
        return await updating.rollback(call, of)

    return order


@pytest.mark.parametrize(
    ("faults", "of", "runs"),
    [
        (NONE, "roll-1", OLD),
        (NONE, "another", NEW),
        (Faults(ill=True), "roll-1", OLD),  # it went back by itself: the other slot is the bad one
        (Faults(fails=True), "roll-1", OLD),  # it never ran
    ],
)
def test_a_way_back_that_is_sent_to_many_is_of_what_one_order_brought(
    tmp_path: Path, faults: Faults, of: str, runs: str
) -> None:
    play = played(tmp_path, faults)
    play.until_quiet()
    before = play.device.runs
    back = Play(play.device, rolls_back_of(of), NONE, Points(), "roll-1.back")
    result = back.until_quiet()
    assert (result["state"], play.device.runs) == ("succeeded", runs)
    assert (len(back.starts) > 1) == (before != runs), "nothing is started for nothing"


def tried_since(folder: Path, faults: Faults, key: signing.Key, kill_at: int = -1) -> Play:
    """Another update than the one that brought NEW, which comes to nothing."""
    first = played(folder)
    first.until_quiet()
    path = package(folder / "next", "1.2", key)
    return Play(first.device, updates(path, "1.2"), faults, Points(kill_at), "roll-2")


def taken_back(play: Play) -> dict[str, Any]:
    back = Play(play.device, rolls_back_of("roll-1"), NONE, Points(), "roll-1.back")
    return back.until_quiet()


def test_what_a_command_brought_is_known_after_another_was_refused(tmp_path: Path) -> None:
    """Root does not take it: what was before is in the other slot still. Killed anywhere in it."""
    before = children()
    foreign = signing.Key(bytes(32))
    whole = tried_since(tmp_path / "whole", NONE, foreign)
    assert whole.until_quiet()["state"] == "failed"
    count = whole.points.count
    assert count >= 5
    for number in range(0, count, 1 if LONG else 4):
        play = tried_since(tmp_path / str(number), NONE, foreign, number)
        assert play.until_quiet()["state"] == "failed", number
        assert taken_back(play) == {"state": "succeeded", "version": OLD, "former": NEW}, number
        assert play.device.runs == OLD
        reap(before)
    assert taken_back(whole)["state"] == "succeeded"
    assert whole.device.runs == OLD
    again = Play(whole.device, rolls_back_of("roll-1"), NONE, Points(), "once more")
    assert again.until_quiet() == {"state": "succeeded", "version": OLD, "former": OLD}


@pytest.mark.parametrize(
    ("faults", "told"),
    [
        (Faults(refuses="switch"), "before roll-1, version 1.0 ran: the other slot has 1.2"),
        (Faults(ill=True), "no version to go back to"),
    ],
)
def test_it_goes_back_to_no_other_version_than_the_one_before(
    tmp_path: Path, faults: Faults, told: str
) -> None:
    play = tried_since(tmp_path, faults, KEY)
    assert play.until_quiet()["state"] == "failed"
    back = taken_back(play)
    assert (back["state"], play.device.runs) == ("failed", NEW)
    assert told in back["message"]


def test_a_record_of_the_time_before_is_read(tmp_path: Path) -> None:
    play = played(tmp_path)
    play.until_quiet()
    path = play.device.state / "update.json"
    record = msgspec.json.decode(path.read_bytes())
    del record["stays"]
    record["before"] = {"link_up": False, "critical": []}
    path.write_bytes(msgspec.json.encode(record))
    assert taken_back(play)["state"] == "succeeded"
    assert play.device.runs == OLD


def states(play: Play) -> list[str]:
    return [one.state for one in Kept(play.device.state / "update.json", Clock()).now.log]


def test_a_new_version_is_built_switched_to_and_confirmed(tmp_path: Path) -> None:
    play = played(tmp_path)
    result = play.until_quiet()
    assert result == {"state": "succeeded", "version": NEW, "former": OLD}
    assert play.starts == [OLD, NEW]
    assert states(play) == GOOD
    assert play.device.runs == NEW
    assert not list((play.device.state / "update").iterdir()), "the package is not kept"


def test_it_is_killed_at_every_instant(tmp_path: Path) -> None:
    before = children()
    """kill -9: of the agent, before and behind each thing that it writes or orders."""
    points = played(tmp_path / "whole")
    points.until_quiet()
    assert points.points.count >= 20
    for number in range(0, points.points.count, 1 if LONG else 2):
        play = played(tmp_path / str(number), kill_at=number)
        result = play.until_quiet()
        assert result == {"state": "succeeded", "version": NEW, "former": OLD}, number
        assert play.device.runs == NEW
        found = states(play)
        # One that died between its own word and root's deed says so, and does it again.
        assert [one for at, one in enumerate(found) if one not in found[:at]] == GOOD, found
        assert found[-1] == "confirmed"
        assert play.starts.count(NEW) <= 3
        reap(before)


@pytest.mark.parametrize(
    ("faults", "told", "log"),
    [
        (Faults(refuses="build"), "build: it does not work", ["fetched", "idle"]),
        (Faults(fails=True), "its own test", ["fetched", "idle"]),
        (Faults(refuses="switch"), "switch: it does not", ["fetched", "built", "switched", "idle"]),
        (Faults(dead=True), "3 starts came to nothing", [*GOOD[:3], "back"]),
        (Faults(ill=True), "it is ill", [*GOOD[:3], "back"]),
    ],
)
def test_each_state_fails_and_the_former_version_runs(
    tmp_path: Path, faults: Faults, told: str, log: list[str]
) -> None:
    play = played(tmp_path, faults)
    result = play.until_quiet()
    assert result["state"] == "failed"
    assert told in result["message"]
    assert f"version {OLD} runs" in result["message"]
    assert states(play) == log
    assert play.device.runs == OLD
    assert play.device.slots().trial() is None


@pytest.mark.parametrize("faults", [Faults(dead=True), Faults(ill=True)])
def test_a_bad_version_is_killed_at_every_instant(tmp_path: Path, faults: Faults) -> None:
    before = children()
    points = played(tmp_path / "whole", faults)
    points.until_quiet()
    assert points.starts.count(NEW) <= 3
    for number in range(0, points.points.count, 1 if LONG else 7):
        play = played(tmp_path / str(number), faults, number)
        assert play.until_quiet()["state"] == "failed", number
        assert play.device.runs == OLD
        assert states(play)[-1] == "back"
        assert play.starts.count(NEW) <= 3
        assert play.device.slots().there("b") is None, "nobody goes to it again"
        reap(before)


def test_one_that_cannot_be_confirmed_goes_back_by_itself(tmp_path: Path) -> None:
    """Whatever is wrong with it: it does not stay unconfirmed."""
    play = played(tmp_path, Faults(refuses="confirm"))
    assert play.until_quiet()["state"] == "failed"
    assert play.device.runs == OLD


def test_a_package_by_somebody_else_changes_nothing(tmp_path: Path) -> None:
    device = Device(tmp_path)
    version(device.opt / "slots" / "b", "0.9")
    foreign = package(tmp_path / "made", key=signing.Key(bytes(32)))
    play = Play(device, updates(foreign), Faults(), Points())
    result = play.until_quiet()
    assert result["state"] == "failed"
    assert "none of the keys" in result["message"]
    assert (device.slots().there("b") or pytest.fail()).version == "0.9", "the way back is there"


def test_a_rollback_is_a_trial_too(tmp_path: Path) -> None:
    play = played(tmp_path)
    play.until_quiet()
    back = Play(play.device, rolls_back, Faults(), Points(), "roll-2")
    assert back.until_quiet() == {"state": "succeeded", "version": OLD, "former": NEW}
    assert states(back) == ["built", "switched", "confirmed"]
    assert back.starts == [NEW, OLD]


async def test_of_two_versions_the_one_that_is_installed_is_started_first(tmp_path: Path) -> None:
    """Else root would build where the agent that runs is from."""
    device = Device(tmp_path)
    version(device.opt / "slots" / "b", NEW)
    slots = device.slots()
    (device.opt / "venv").unlink()
    (device.opt / "venv").symlink_to("slots/b")
    made = SimpleNamespace(path=device.state / "update.json")
    updating = Updating(slots, *(None, made, None, None, None, OLD))  # type: ignore[arg-type]
    with pytest.raises(NotNow, match="not started yet"):
        await updating.rollback(Call(device, Points(), "x"))


async def test_an_agent_of_no_slots_is_updated_by_hand(tmp_path: Path) -> None:
    made = SimpleNamespace(path=tmp_path / "update.json")
    updating = Updating(*(None, None, made, None, None, None, OLD))  # type: ignore[arg-type]
    for asked in (updating.rollback, updating.resume):
        with pytest.raises(NotNow, match="slot"):
            await asked(Call(Device(tmp_path / asked.__name__), Points(), "x"))


def test_there_is_nothing_to_go_back_to(tmp_path: Path) -> None:
    result = Play(Device(tmp_path), rolls_back, Faults(), Points()).until_quiet()
    assert "no version to go back to" in result["message"]

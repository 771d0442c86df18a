"""How a new version proves itself, as its agent sees it; slots.sh is the real one."""

import asyncio
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from agent.clock import Clock
from agent.compose.slots import SlotParts
from agent.health.conditions import Conditions
from agent.host.root.client import RootRefused
from agent.host.slots.layout import Slots
from agent.updates.slots import trial
from agent.updates.slots.record import Before, Kept
from agent.updates.slots.shown import Running, running
from agent.updates.slots.trial import Trial
from agent.versions import judge
from tests.outside import DEADLINE_S
from tests.updates.rig import NEW, OLD, Device, Faults, Points, Root, version


class Rig:
    """The new version in slot b, in its first start."""

    def __init__(self, folder: Path) -> None:
        self.device = Device(folder)
        version(self.device.opt / "slots" / "b", NEW)
        self.device.sh("switch")
        self.device.sh("start")
        self.clock = Clock()
        self.conditions = Conditions(self.clock)
        self.kept = Kept(self.device.state / "update.json", self.clock)
        self.ends: list[str] = []
        self.root: Any = Root(self.device, Faults(), Points())

    async def run(self, answers: Iterator[str], confirm_s: float = DEADLINE_S) -> None:
        proves = Trial(
            *(Slots(self.device.opt, "b"), self.root, self.kept, lambda _: next(answers)),
            *(self.ends.append, self.conditions, self.clock, NEW, confirm_s),
        )
        await proves.run()

    def names(self) -> list[str]:
        return [one.name for one in self.conditions.all()]


@pytest.fixture
def rig(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Rig:
    for name in ("LOOK_S", "SETTLE_S", "AGAIN_S"):
        monkeypatch.setattr(trial, name, 0.01)
    return Rig(tmp_path)


async def test_one_that_becomes_well_stays(rig: Rig) -> None:
    """Also where nothing is known of what ordered it."""
    told = list[list[str]]()

    def answers() -> Iterator[str]:
        for _ in range(3):
            told.append(rig.names())
            yield "the link is down"
        while True:
            yield ""

    await rig.run(answers())
    assert told[0] == ["agent_on_trial"]
    assert (rig.names(), rig.ends, rig.device.linked) == ([], [], "b")
    assert [one.state for one in rig.kept.now.log] == ["switched", "confirmed"]


async def test_one_that_is_never_well_for_long_enough_goes_back(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trial, "SETTLE_S", DEADLINE_S)

    def answers() -> Iterator[str]:
        while True:
            yield from ("", "", "it is not well: domain_down gate")

    await rig.run(answers(), confirm_s=0.3)
    assert rig.device.linked == "a"
    (why,) = rig.ends
    assert "within 0.3 s of its start" in why
    assert rig.kept.now.state == "back"


async def test_where_root_does_not_do_it_it_is_asked_again(rig: Rig) -> None:
    class Reluctant:
        def __init__(self, root: Any) -> None:
            self.refusals, self._root = 2, root

        async def ask(self, order: Any) -> str:
            self.refusals -= 1
            if self.refusals >= 0:
                raise RootRefused("not now")
            said: str = await self._root.ask(order)
            return said

    rig.root = Reluctant(rig.root)
    await rig.run(iter(["it is ill"]), confirm_s=0.001)
    assert (rig.device.linked, len(rig.ends)) == ("a", 1)


async def test_one_that_is_on_no_trial_does_nothing(rig: Rig) -> None:
    rig.device.sh("confirm")
    async with asyncio.timeout(DEADLINE_S):
        await rig.run(iter(()))
    assert (rig.ends, rig.names()) == ([], [])


async def test_what_runs_is_told_in_each_state(rig: Rig) -> None:
    device, kept = rig.device, rig.kept

    def told() -> Running:
        return running(NEW if device.linked == "b" else OLD, device.slots(), kept.now)

    assert told() == Running(NEW, on_trial=True, other=OLD)
    device.sh("confirm")
    assert told() == Running(NEW, other=OLD)
    (device.opt / "slots" / "a" / "slot.json").unlink()
    assert told() == Running(NEW)
    assert running(OLD, None, kept.now) == Running(OLD)


async def test_a_version_that_went_back_is_told_with_its_reason(rig: Rig) -> None:
    await rig.run(iter(["it is ill"]), confirm_s=0.001)
    slots = rig.device.slots()
    assert slots.running == "a"
    back = running(OLD, slots, rig.kept.now).went_back
    assert back
    assert back.version == NEW
    assert "it is ill" in back.why


class Compared:
    """What compares, with a link that has been up for long."""

    def __init__(self, folder: Path) -> None:
        self.clock = Clock()
        self.conditions = Conditions(self.clock)
        self.link = SimpleNamespace(
            connected_since=self.clock.monotonic() - 60.0, state=lambda: {"down_cause": "no answer"}
        )
        self.watchdog = SimpleNamespace(fed=True)
        core = SimpleNamespace(
            conditions=self.conditions,
            clock=self.clock,
            settings=SimpleNamespace(updates=SimpleNamespace(confirm_s=60.0)),
            beside=lambda name: folder / name,
        )
        self.parts = SlotParts(
            folder / "config.yaml",
            core,  # type: ignore[arg-type]
            SimpleNamespace(link=self.link),  # type: ignore[arg-type]
            SimpleNamespace(root=None, watchdog=self.watchdog),  # type: ignore[arg-type]
            lambda _: None,
        )


@pytest.fixture
def compared(tmp_path: Path) -> Compared:
    return Compared(tmp_path)


def test_it_is_compared_with_how_it_was(compared: Compared) -> None:
    parts, conditions, inner = compared.parts, compared.conditions, compared.link
    inner.connected_since, compared.watchdog.fed = None, False
    assert "must move" in parts._lacks(Before())
    compared.watchdog.fed = True
    assert parts._lacks(Before()) == ""
    assert "no answer" in parts._lacks(Before(link_up=True))
    inner.connected_since = compared.clock.monotonic()
    assert "just now" in parts._lacks(Before(link_up=True)), "it may have come and gone unseen"
    inner.connected_since = compared.clock.monotonic() - 60.0
    assert parts._lacks(Before(link_up=True)) == ""
    conditions.hold("flash_wearing", "vda", "warning", "it is old", "replace it")
    assert parts._lacks(Before()) == "", "no version has made it so"
    conditions.hold("domain_down", "gate", "warning", "it died", "look")
    assert "domain_down gate" in parts._lacks(Before())
    before = parts._now()
    assert before.link_up
    assert parts._lacks(before) == "", "it was so before"
    conditions.hold("domain_down", "gate", "critical", "it rests", "look")
    assert "domain_down gate" in parts._lacks(before), "it became worse"
    assert parts._lacks(parts._now()) == ""


def test_only_the_version_on_trial_says_what_speaks_against_it(
    compared: Compared, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the former one would not have minded held as well: no update would pass there, ever."""
    parts, conditions = compared.parts, compared.conditions
    conditions.hold("flash_wearing", "vda", "warning", "it is old", "replace it")
    before = msgspec.json.decode(msgspec.json.encode(parts._now()), type=Before)
    monkeypatch.setattr(judge, "CAUSED", judge.CAUSED | {"flash_wearing"})
    assert parts._lacks(before) == ""
    conditions.hold("flash_wearing", "vdb", "warning", "it is old", "replace it")
    assert parts._lacks(before) == "it is not well: flash_wearing vdb"


@pytest.mark.parametrize(
    "before",
    [
        b'{"link_up": true, "critical": ["domain_down gate", "safe_mode agent"]}',
        b'{"link_up": true, "wrong": ["domain_down gate", "safe_mode agent"]}',
        b'{"link_up": true, "wrong": ["domain_down gate", "safe_mode agent"], '
        b'"critical": ["safe_mode agent"], "what comes later": 1}',
    ],
)
def test_what_other_versions_wrote_of_the_time_before_is_understood(
    compared: Compared, before: bytes
) -> None:
    parts, conditions = compared.parts, compared.conditions
    conditions.hold("safe_mode", "agent", "critical", "too many restarts", "resume")
    conditions.hold("domain_down", "gate", "warning", "it died", "look")
    known = msgspec.json.decode(before, type=Before)
    assert parts._lacks(known) == ""
    conditions.hold("store_damaged", "store", "critical", "a page", "look")
    assert parts._lacks(known) == "it is not well: store_damaged store"

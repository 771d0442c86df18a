"""A command is cancelled: it never begins, or is told to run already; who may, and who may not."""

from pathlib import Path

import msgspec
import pytest

from agent.commands.runs import AT_ONCE_MAX
from agent.protocol.commands import Result
from agent.protocol.signing import Key
from agent.store.journal import Limits
from tests.commands.rig import Rig, rig
from tests.commands.test_desk import Trusted, signed


async def begun(one: Rig, name: str) -> None:
    seen = 0
    while (await one.desk.result(name)).state != "running":
        seen = await one.desk.changes.after(seen)


async def test_what_waits_for_its_turn_never_begins(tmp_path: Path) -> None:
    told: list[Result] = []
    async with rig(tmp_path) as one:
        one.desk.listeners.append(told.append)
        await one.order("wait", "first")
        await begun(one, "first")
        assert (await one.order("wait", "second")).state == "accepted"
        await one.order("commands.cancel", "no", args={"id": "second"})
        said = await one.ended("no")
        assert msgspec.json.decode(said.result) == {
            "id": "second",
            "name": "wait",
            "state": "interrupted",
        }
        ended = await one.ended("second")
        assert (ended.state, ended.reason) == ("interrupted", "cancelled")
        assert ended.message == "cancelled before it began, by command no by http"
        assert ended in told
        again = await one.order("wait", "second")
        assert again == ended, "its id has had its one effect: none"
        one.effects.gate.set()
        await one.ended("first")
        await one.order("wait", "third")  # behind it in its lane
        assert (await one.ended("third")).state == "succeeded"
        assert one.effects.lines() == ["first:x", "third:x"]
        assert (await one.store.ledger.balances())["commands"].produced == 4, "a record of each end"
        counts = await one.store.journal.counts()
        assert (counts["accepted"], counts["interrupted"]) == (4, 1)


async def test_what_runs_or_has_ended_is_left_and_that_is_said(tmp_path: Path) -> None:
    async with rig(tmp_path) as one:
        await one.order("wait", "runs")
        await begun(one, "runs")
        await one.order("commands.cancel", "a", args={"id": "runs"})
        said = await one.ended("a")
        assert (said.state, said.reason) == ("failed", "not_now")
        assert "wait 'runs' runs already" in said.message
        one.effects.gate.set()
        assert (await one.ended("runs")).state == "succeeded"
        await one.order("commands.cancel", "b", args={"id": "runs"})
        assert "has ended already: succeeded" in (await one.ended("b")).message
        unknown = await one.order("commands.cancel", "c", args={"id": "later"})
        assert (unknown.state, unknown.reason) == ("refused", "not_now")


async def test_it_waits_for_none_of_those_that_run(tmp_path: Path) -> None:
    async with rig(tmp_path) as one:
        for n in range(AT_ONCE_MAX):
            await one.order("tell", f"t{n}")
            await begun(one, f"t{n}")
        assert (await one.order("write")).state == "accepted"
        await one.order("commands.cancel", "no", args={"id": "one"})
        assert (await one.ended("no")).state == "succeeded"
        one.effects.gate.set()
        assert (await one.ended("t0")).state == "succeeded"
        assert one.effects.lines() == []


@pytest.mark.parametrize("scopes", [{"read"}, {"read", "infer", "operate"}, {"admin"}])
async def test_who_may_order_it_may_cancel_it_and_nobody_else(
    tmp_path: Path, scopes: set[str]
) -> None:
    async with rig(tmp_path, run=False) as one:
        for name, needed in (("tell", "read"), ("write", "operate"), ("grave", "admin")):
            await one.order(name, name)
            no = f"no-{name}"
            said = await one.order("commands.cancel", no, args={"id": name}, scopes=scopes)
            wanted = ("accepted", "") if needed in scopes else ("refused", "not_allowed")
            assert (said.state, said.reason) == wanted, name


async def test_from_afar_what_must_be_signed_is_cancelled_by_a_signed_order_alone(
    tmp_path: Path,
) -> None:
    key = Key.kept(tmp_path / "k")
    async with rig(tmp_path, signed="grave", keys=[key.public], clock=Trusted(), run=False) as one:
        for name in ("grave", "write"):
            await one.order(name, name)
        bare = await one.order("commands.cancel", "a", "mqtt", args={"id": "grave"})
        assert bare.reason == "not_signed"
        mild = await one.order("commands.cancel", "b", "mqtt", args={"id": "write"})
        assert mild.state == "accepted"
        cancels = {"name": "commands.cancel", "args": {"id": "grave"}}
        assert (await signed(tmp_path, one, key, id="c", **cancels)).state == "accepted"


async def test_who_filled_a_device_may_take_it_back(tmp_path: Path) -> None:
    async with rig(tmp_path, limits=Limits(rows_max=20)) as one:
        for n in range(18):
            assert (await one.order("wait", f"w{n}", "mqtt")).state == "accepted"
        await begun(one, "w0")
        assert (await one.order("wait", "more", "mqtt")).reason == "full"
        for n in range(1, 18):
            await one.order("commands.cancel", f"c{n}", "mqtt", args={"id": f"w{n}"})
            assert (await one.ended(f"c{n}")).state == "succeeded"
        assert (await one.order("wait", "again", "mqtt")).state == "accepted"
        one.effects.gate.set()
        assert (await one.ended("again")).state == "succeeded"
        assert one.effects.lines() == ["w0:x", "again:x"]

"""The desk: each id has one effect and one result, whatever comes."""

import asyncio
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest

from agent.clock import Clock
from agent.commands.verb import Call, NoArgs, Verb
from agent.errors import NotThere
from agent.protocol.commands import Command, Order, Unread
from agent.protocol.signing import Key
from agent.records import Stamp
from agent.store.journal import Entry, Journal, Limits
from tests.commands.rig import DEVICE, rig

HOUR = timedelta(hours=1)


class Trusted(Clock):
    """A clock of which the kernel says what the test says."""

    def __init__(self, *, synchronised: bool = True, ahead_s: float = 0.0) -> None:
        super().__init__()
        self.is_synchronised = synchronised
        self.ahead_s = ahead_s

    def synchronised(self) -> bool:
        return self.is_synchronised

    def wall(self) -> float:
        return super().wall() + self.ahead_s

    def stamp(self) -> Stamp:
        found = super().stamp()
        return msgspec.structs.replace(found, wall_us=found.wall_us + int(self.ahead_s * 1e6))


async def test_a_command_has_one_effect_and_its_result_stays(tmp_path: Path) -> None:
    async with rig(tmp_path) as one:
        said = await one.order("write", args={"line": "a"})
        assert (said.state, said.number) == ("accepted", 1)
        ended = await one.ended()
        assert (ended.state, msgspec.json.decode(ended.result)) == ("succeeded", {"wrote": "a"})
        again = await one.order("write", args={"line": "a"}, door="mqtt")
        assert again == ended
        assert one.effects.lines() == ["one:a"]
    async with rig(tmp_path) as one:
        assert await one.order("write", args={"line": "a"}) == ended
        assert one.effects.lines() == ["one:a"]
        records = await one.store.ledger.balances()
        assert records["commands"].produced == 1


async def test_an_id_is_of_one_command(tmp_path: Path) -> None:
    async with rig(tmp_path) as one:
        await one.order("write", args={"line": "a"})
        said = await one.order("write", args={"line": "b"})
        assert (said.state, said.reason) == ("refused", "id_taken")
        ended = await one.ended()
        assert ended.state == "succeeded"
        assert one.effects.lines() == ["one:a"]


@pytest.mark.parametrize(
    ("asked", "reason", "word"),
    [
        ({"name": "wriet"}, "unknown_command", "did you mean write"),
        ({"name": "write", "args": {"line": 3}}, "bad_args", "args.line"),
        ({"name": "write", "args": {"lime": "x"}}, "bad_args", "lime"),
        ({"name": "write", "device": "other"}, "wrong_device", "other"),
        ({"name": "grave", "scopes": {"operate"}}, "not_allowed", "admin"),
        ({"name": "write", "expires": datetime(2020, 1, 1, tzinfo=UTC)}, "too_old", "2020"),
    ],
)
async def test_what_is_not_taken_says_why_and_takes_nobodys_id(
    tmp_path: Path, asked: dict[str, Any], reason: str, word: str
) -> None:
    async with rig(tmp_path, clock=Trusted()) as one:
        said = await one.order(**asked)
        assert (said.state, said.reason) == ("refused", reason)
        assert word in f"{said.message} {said.hint}"
        kept = await one.store.journal.refusals(10)
        assert [(row.reason, row.id) for row in kept] == [(reason, "one")]
        assert (await one.order("write")).state == "accepted"


async def test_what_is_no_command_is_kept_too(tmp_path: Path) -> None:
    async with rig(tmp_path) as one:
        said = await one.desk.unread(Unread("not JSON", "unreadable"), "mqtt")
        assert (said.state, said.reason, said.id) == ("refused", "unreadable", "")
        assert len(await one.store.journal.refusals(10)) == 1


async def test_a_failure_a_timeout_and_too_large_a_result_are_told(tmp_path: Path) -> None:
    async with rig(tmp_path) as one:
        for name in ("fail", "slow", "much"):
            await one.order(name, name)
        failed, slow, much = [await one.ended(name) for name in ("fail", "slow", "much")]
        assert (failed.state, failed.reason, failed.hint) == (
            *("failed", "not_now"),
            "wait for another one",
        )
        assert (slow.state, slow.reason) == ("failed", "timeout")
        assert (much.state, much.result) == ("succeeded", None)
        assert "more than is told" in much.message


async def test_a_lane_keeps_its_order_and_holds_up_no_other(tmp_path: Path) -> None:
    async with rig(tmp_path) as one:
        await one.order("wait", "first", args={"line": "w"})
        for n in range(20):
            await one.order("write", f"n{n}")
        await one.ended("n19")
        assert one.effects.lines() == [f"n{n}:x" for n in range(20)]
        assert not (await one.desk.result("first")).ended
        one.effects.gate.set()
        assert (await one.ended("first")).state == "succeeded"


async def test_progress_is_told_while_it_runs(tmp_path: Path) -> None:
    async with rig(tmp_path) as one:
        told: list[Any] = []
        one.desk.listeners.append(told.append)
        await one.order("tell")
        seen = 0
        while not told or told[-1].progress is None:
            seen = await one.desk.changes.after(seen)
        assert (told[-1].state, told[-1].progress, told[-1].message) == (
            *("running", 0.25),
            "a quarter",
        )
        one.effects.gate.set()
        assert (await one.ended()).state == "succeeded"
        assert [one.state for one in told] == ["accepted", "running", "running", "succeeded"]


async def test_after_a_crash_what_comes_again_does_not_overtake_what_came_before(
    tmp_path: Path,
) -> None:
    async with rig(tmp_path, run=False) as one:
        for name in ("first", "second"):
            await one.order("write", name)
    there = asyncio.Event()

    class Late:
        """A journal that tells late what was begun before."""

        def __init__(self, journal: Journal) -> None:
            self._journal = journal

        def __getattr__(self, name: str) -> Any:
            return getattr(self._journal, name)

        async def open(self) -> list[Entry]:
            await there.wait()
            return await self._journal.open()

    async with rig(tmp_path, journal=Late) as one:
        # The broker sends again what it knows no PUBACK of.
        assert (await one.order("write", "second")).state == "accepted"
        assert (await one.order("write", "third")).state == "accepted"
        there.set()
        for name in ("first", "second", "third"):
            await one.ended(name)
        assert one.effects.lines() == ["first:x", "second:x", "third:x"]


async def test_one_that_expires_before_its_turn_is_not_carried_out(tmp_path: Path) -> None:
    clock = Trusted()
    soon = datetime.now(UTC) + timedelta(seconds=60)
    async with rig(tmp_path, clock=clock, run=False) as one:
        assert (await one.order("write", expires=soon)).state == "accepted"
    real = clock.monotonic
    ns = 61 * 10**9

    class Later(Trusted):
        def stamp(self) -> Stamp:
            found = super().stamp()
            return msgspec.structs.replace(found, mono_ns=found.mono_ns + ns)

        def monotonic(self) -> float:
            return real() + 61

    async with rig(tmp_path, clock=Later()) as one:
        ended = await one.ended()
        assert (ended.state, ended.reason) == ("expired", "too_old")
        assert one.effects.lines() == []


async def test_with_a_clock_in_1970_nothing_is_too_old_that_is_not_known_to_be(
    tmp_path: Path,
) -> None:
    clock = Trusted(synchronised=False, ahead_s=-50 * 365.25 * 86_400)
    async with rig(tmp_path, clock=clock) as one:
        said = await one.order("write", expires=datetime(2020, 1, 1, tzinfo=UTC))
        assert said.state == "accepted"
    fresh = tmp_path / "known"
    fresh.mkdir()
    async with rig(fresh, clock=Trusted()) as one:
        one.known.note()
    bent = Trusted(synchronised=False, ahead_s=-50 * 365.25 * 86_400)
    bent.boot = "another"
    async with rig(fresh, clock=bent) as one:  # it knows that it is later than that
        said = await one.order("write", expires=datetime(2020, 1, 1, tzinfo=UTC))
        assert said.reason == "too_old"


async def signed(tmp_path: Path, one: Any, key: Key, **asked: Any) -> Any:
    now = datetime.now(UTC)
    known = {"id": "s", "name": "grave", "device": DEVICE, "issued": now, "expires": now + HOUR}
    command = Command(**{**known, **asked})
    return await one.desk.order(Order(command, key.public), "mqtt")


async def test_grave_commands_over_the_link_must_be_signed_by_a_known_key(tmp_path: Path) -> None:
    key, stranger = Key.kept(tmp_path / "k"), Key.kept(tmp_path / "other")
    async with rig(tmp_path, signed="grave", keys=[key.public], clock=Trusted()) as one:
        assert (await one.order("write", "w", door="mqtt")).state == "accepted"
        assert (await one.order("grave", "g", door="mqtt")).reason == "not_signed"
        assert (await one.order("nosuch", "n", door="mqtt")).reason == "not_signed"
        assert (await signed(tmp_path, one, stranger)).reason == "not_trusted"
        for missing in ("device", "issued", "expires"):
            said = await signed(tmp_path, one, key, **{missing: None})
            assert (said.reason, missing in said.message) == ("not_trusted", True)
        ahead = datetime.now(UTC) + HOUR
        said = await signed(tmp_path, one, key, issued=ahead, expires=ahead + HOUR)
        assert said.reason == "not_trusted"
        assert (await signed(tmp_path, one, key)).state == "accepted"
        assert (await signed(tmp_path, one, key, id="t", device="other")).reason == "wrong_device"
        await one.ended("s")
        assert one.effects.lines().count("s:x") == 1


async def test_a_signed_command_that_was_forgotten_has_no_second_effect(tmp_path: Path) -> None:
    key = Key.kept(tmp_path / "k")
    limits = Limits(rows_max=2)
    async with rig(tmp_path, keys=[key.public], clock=Trusted(), limits=limits) as one:
        issued = datetime.now(UTC) - timedelta(minutes=5)
        assert (await signed(tmp_path, one, key, issued=issued)).state == "accepted"
        await one.ended("s")
        for n in range(3):
            await one.order("write", f"w{n}")
            await one.ended(f"w{n}")
        with pytest.raises(NotThere):
            await one.desk.result("s")
        said = await signed(tmp_path, one, key, issued=issued)
        assert (said.state, said.reason) == ("refused", "too_old")
        assert one.effects.lines().count("s:x") == 1
        later = await signed(tmp_path, one, key, id="later")
        assert later.state == "accepted"


async def test_a_full_journal_refuses_and_forgets_none_that_runs(tmp_path: Path) -> None:
    async with rig(tmp_path, limits=Limits(rows_max=3)) as one:
        for n in range(3):
            assert (await one.order("wait", f"w{n}")).state == "accepted"
        said = await one.order("write", "late")
        assert (said.state, said.reason) == ("refused", "full")
        one.effects.gate.set()
        for n in range(3):
            assert (await one.ended(f"w{n}")).state == "succeeded"
        assert (await one.order("write", "late")).state == "accepted"


async def test_a_store_without_room_for_the_record_keeps_the_end(tmp_path: Path) -> None:
    async with rig(tmp_path) as one:
        one.takes_no_record()
        await one.order("write")
        assert (await one.ended()).state == "succeeded"
        assert "commands" not in await one.store.ledger.balances()


async def test_a_fault_in_a_handler_is_told_and_ends_nothing_else(tmp_path: Path) -> None:
    async with rig(tmp_path) as one:

        async def stumble(_: NoArgs, __: Call) -> Any:
            raise ZeroDivisionError("a slip")

        one.desk.catalogue._verbs["slip"] = Verb("slip", "Slip.", NoArgs, stumble)
        await one.order("slip")
        ended = await one.ended()
        assert (ended.state, "a slip" in ended.message) == ("failed", True)
        assert (await one.order("write", "next")).state == "accepted"
        assert (await one.ended("next")).state == "succeeded"


async def test_who_stands_before_the_machine_has_room_where_others_have_none(
    tmp_path: Path,
) -> None:
    async with rig(tmp_path, limits=Limits(rows_max=10)) as one:
        for n in range(9):
            assert (await one.order("wait", f"w{n}", door="mqtt")).state == "accepted"
        assert (await one.order("write", "late", door="mqtt")).reason == "full"
        assert (await one.order("write", "here")).state == "accepted"
        assert (await one.ended("here")).state == "succeeded"


async def test_what_asks_for_an_administrator_is_grave_from_afar(tmp_path: Path) -> None:
    async with rig(tmp_path, signed="grave") as one:
        one.desk.catalogue._verbs["see"] = Verb("see", "See.", NoArgs, _seen, "admin")
        assert (await one.order("see", door="mqtt")).reason == "not_signed"
        assert (await one.order("see")).state == "accepted"


async def test_who_cannot_sign_orders_what_the_settings_name(tmp_path: Path) -> None:
    grave = Command(id="one", name="grave", args={"line": "a"})
    async with rig(tmp_path, signed="grave") as one:
        said = await one.desk.from_plant(grave)
        assert (said.reason, "commands.from_plant" in said.message) == ("not_signed", True)
        assert not one.desk.takes_from_plant("grave")
        assert one.desk.takes_from_plant("write")
    async with rig(tmp_path, signed="all", from_plant=["grave"]) as one:
        assert one.desk.takes_from_plant("grave")
        assert not one.desk.takes_from_plant("write")
        assert (await one.desk.from_plant(grave)).state == "accepted"
        said = await one.order("grave", "two", args=grave.args, door="mqtt")
        assert said.reason == "not_signed", "who can sign does"


async def _seen(_: NoArgs, __: Call) -> Any:
    return {}


async def test_an_orderly_end_counts_against_no_command(tmp_path: Path) -> None:
    for _ in range(7):
        async with rig(tmp_path) as one:
            await one.order("tell")
            seen = 0
            while (await one.desk.result("one")).state != "running":
                seen = await one.desk.changes.after(seen)
    async with rig(tmp_path) as one:
        one.effects.gate.set()
        assert (await one.ended()).state == "succeeded"


async def test_an_order_is_open_until_it_has_ended(tmp_path: Path) -> None:
    async with rig(tmp_path) as one:
        journal = one.store.journal
        assert not await journal.is_open("one")
        await one.order("wait")
        assert await journal.is_open("one")
        one.effects.gate.set()
        await one.ended()
        assert not await journal.is_open("one")

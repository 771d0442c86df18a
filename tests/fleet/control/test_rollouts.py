"""Rollouts in both databases, with results that come by hand: no broker, no process."""

from collections.abc import Sequence
from typing import Any

import msgspec
import pytest

from agent.errors import NotNow, NotThere
from agent.protocol.commands import Result
from agent.protocol.presence import Presence
from fleet.control import base, book, driving, known, plan, rollouts, standing
from fleet.control.cli import view
from fleet.control.orders import Wish, made
from fleet.control.plan import Plan
from fleet.control.reports import Report, report
from fleet.store.database import Database, Transaction
from tests.fleet.control.rig import fleet

S = 1_000_000
ID = "r-1"
BACK = standing.back_id(ID)


class Hall:
    """A rollout to so many devices, in a transaction each; the time is said."""

    def __init__(self, database: Database, count: int) -> None:
        self.database = database
        self.members = plan.ordered([f"d{i:03}" for i in range(count)], ID)
        self.now_us = 1_000 * S

    async def start(self, **settings: Any) -> None:
        told = {"name": "model.install", "samples_min": 2, "timeout_s": 60.0, **settings}
        bounds = plan.counts(told.pop("counts", "2,5"), len(self.members))
        planned = rollouts.checked(Plan(bounds=bounds, **told))
        orders, backs = (
            made(Wish(name=name, id=id_, expires_s=86_400), self.members, self.now_us / S)
            for name, id_ in (("model.install", ID), ("model.rollback", standing.back_id(ID)))
        )
        async with self.database.begin() as one:
            await rollouts.start(
                one, ID, planned, orders, backs if planned.back else [], self.now_us
            )
        await self.go(0)

    async def go(self, seconds: float) -> None:
        """So much later; then what is due is published, and the rollout driven."""
        self.now_us += int(seconds * S)
        async with self.database.begin() as one:
            await driving.drive(one, ID, self.now_us)
            due = await book.due(one, self.now_us, 1000)
            there = [each for each in due if each.online is not False]
            again_us = self.now_us + 3600 * S
            await book.sent(one, there, self.now_us, self.now_us, again_us)

    async def say(self, state: str, *devices: str, id_: str = ID) -> None:
        said = [_result(device, id_, state) for device in devices]
        async with self.database.begin() as one:
            await book.heard(one, said, self.now_us, self.now_us + 3600 * S)
        await self.go(0)

    async def turn(self, online: bool, *devices: str) -> None:
        words = {"epoch": "e", "version": "1", "ack_from": "ingest"}
        said = {name: Presence(device=name, online=online, **words) for name in devices}
        async with self.database.begin() as one:
            await known.presences(one, said, self.now_us)
            await book.turned(one, dict.fromkeys(devices, online), self.now_us)
        async with self.database.begin() as one:
            begun = bool(await standing.ids(one))
        if begun:
            await self.go(0)

    async def report(self) -> Report:
        async with self.database.begin() as one:
            return await report(one, ID)

    async def states(self, id_: str = ID) -> list[str]:
        """Of the members' commands, in their order."""
        async with self.database.begin() as one:
            found = {each.device: each.state for each in await book.found(one, ids=[id_])}
        return [found[name] for name in self.members]


def _result(device: str, id_: str, state: str, reason: str = "") -> Result:
    told = {"id": id_, "name": "model.install", "device": device, "state": state, "reason": reason}
    message = "taken back" if state == "failed" else ""
    return msgspec.convert({**told, "message": message}, Result)


async def test_step_by_step_to_the_end(url: str) -> None:
    async with base.open(url) as database:
        hall = Hall(database, 8)
        await hall.start(soak_s=30.0, in_flight_max=2)
        assert await hall.states() == ["sent"] * 2 + ["planned"] * 6
        await hall.say("succeeded", *hall.members[:2])
        assert await hall.states() == ["succeeded"] * 2 + ["planned"] * 6, "it soaks"
        await hall.go(31)
        assert await hall.states() == ["succeeded"] * 2 + ["sent"] * 2 + ["planned"] * 4
        await hall.say("succeeded", *hall.members[2:4])
        assert (await hall.states())[4] == "sent"
        await hall.say("succeeded", hall.members[4])
        await hall.go(31)
        await hall.say("succeeded", *hall.members[5:7])
        await hall.say("succeeded", *hall.members[7:])
        told = await hall.report()
        assert (told.state, told.counts["good"], told.failed) == ("finished", 8, [])
        assert (told.step, told.steps) == (3, [2, 5, 8])


async def test_it_stops_at_the_threshold_and_names_the_bad(url: str) -> None:
    async with base.open(url) as database:
        hall = Hall(database, 8)
        await hall.start(failures_max=0.3, back="model.rollback", back_on="failed")
        await hall.say("succeeded", hall.members[0])
        await hall.say("failed", hall.members[1])
        told = await hall.report()
        assert (told.state, told.cause) == (
            "paused",
            "1 of 2 in this step failed, more than 30.00%",
        )
        (bad,) = told.failed
        assert (bad.device, bad.state, bad.message) == (hall.members[1], "failed", "taken back")
        assert (await hall.states(standing.back_id(ID)))[:2] == ["planned", "sent"], "its way back"
        await hall.go(3600)
        assert await hall.states() == ["succeeded", "failed"] + ["planned"] * 6
        async with database.begin() as one:
            with pytest.raises(NotNow, match="is paused"):
                await rollouts.pause(one, ID, "", hall.now_us)
            await rollouts.resume(one, ID, hall.now_us)
        await hall.go(0)
        assert await hall.states() == ["succeeded", "failed"] + ["sent"] * 3 + ["planned"] * 3
        await hall.say("failed", hall.members[2])
        assert (await hall.report()).state == "running", "what was forgiven does not count"


async def test_those_that_are_away_are_not_waited_for_and_get_it_when_they_come(url: str) -> None:
    async with base.open(url) as database:
        hall = Hall(database, 5)
        await hall.turn(False, hall.members[0])
        await hall.start(counts="2")
        assert await hall.states() == ["planned", "sent"] + ["planned"] * 3
        await hall.say("succeeded", hall.members[1])
        assert await hall.states() == ["planned", "succeeded"] + ["sent"] * 3
        told = await hall.report()
        assert (told.away, told.counts["away"]) == ([hall.members[0]], 1)
        await hall.say("succeeded", *hall.members[2:])
        assert (await hall.report()).state == "running", "one is missing"
        await hall.turn(True, hall.members[0])
        assert (await hall.states())[0] == "sent"
        await hall.say("succeeded", hall.members[0])
        assert (await hall.report()).state == "finished"


async def test_one_that_owes_its_word_for_too_long_has_failed(url: str) -> None:
    async with base.open(url) as database:
        hall = Hall(database, 4)
        await hall.start(counts="4", failures_max=0.9)
        mute, gone, crashed, good = hall.members
        await hall.turn(False, gone)
        await hall.say("accepted", crashed)
        await hall.turn(False, crashed)
        await hall.say("succeeded", good)
        await hall.go(61)
        told = await hall.report()
        assert {one.device: one.state for one in told.failed} == {mute: "late", crashed: "late"}
        assert told.failed[0].reason == "timeout"
        assert told.counts["gone"] == 1, "who is not there owes nothing"
        await hall.turn(True, gone)
        await hall.go(59)
        assert len((await hall.report()).failed) == 2, "its time begins when it is there"
        await hall.go(2)
        assert len((await hall.report()).failed) == 3
        await hall.say("succeeded", mute, crashed, gone)
        told = await hall.report()
        assert (told.state, told.failed, told.counts["good"]) == ("finished", [], 4)


async def test_abort_withdraws_and_sends_the_way_back_to_all_that_have_it(url: str) -> None:
    async with base.open(url) as database:
        hall = Hall(database, 6)
        await hall.start(counts="4", back="model.rollback", back_on="both", failures_max=1.0)
        good, bad, working, sent, *rest = hall.members
        await hall.say("succeeded", good)
        await hall.say("failed", bad)
        await hall.say("accepted", working)
        async with database.begin() as one:
            await rollouts.abort(one, ID, "it smells", hall.now_us)
        await hall.go(0)
        assert await hall.states() == ["succeeded", "failed", "accepted"] + ["withdrawn"] * 3
        back = standing.back_id(ID)
        assert await hall.states(back) == ["sent", "sent"] + ["planned"] * 4
        await hall.say("succeeded", working, sent)
        assert await hall.states(back) == ["sent"] * 4 + ["planned"] * 2, "when they have it"
        assert (await hall.report()).cause == "it smells"
        assert rest


async def test_a_pause_takes_back_what_the_broker_does_not_have(url: str) -> None:
    async with base.open(url) as database:
        hall = Hall(database, 4)
        await hall.start(counts="1,4")
        await hall.say("succeeded", hall.members[0])
        async with database.begin() as one:
            await one.execute("UPDATE commands SET state = 'waiting' WHERE state = 'sent'")
            await rollouts.pause(one, ID, "lunch", hall.now_us)
        await hall.go(0)
        assert await hall.states() == ["succeeded"] + ["planned"] * 3
        async with database.begin() as one:
            await rollouts.resume(one, ID, hall.now_us)
        await hall.go(0)
        assert await hall.states() == ["succeeded"] + ["sent"] * 3


async def test_what_expires_without_a_word_is_no_evidence(url: str) -> None:
    async with base.open(url) as database:
        hall = Hall(database, 4)
        await hall.start(counts="4")
        await hall.turn(False, *hall.members)
        async with database.begin() as one:
            touched = await book.lapse(one, hall.now_us + 2 * 86_400 * S)
        assert touched == {ID}
        await hall.go(0)
        told = await hall.report()
        assert (told.state, told.counts["missed"], told.failed) == ("finished", 4, [])
        async with database.begin() as one:
            late = _result(hall.members[1], ID, "refused", "too_old")
            await book.heard(one, [late], hall.now_us, 0)
        told = await hall.report()
        assert (told.counts["missed"], told.failed) == (4, []), "it came too late, that is all"
        await hall.say("succeeded", hall.members[0])
        assert (await hall.states())[0] == "succeeded", "the device's word stands above ours"


async def test_results_may_come_twice_late_and_out_of_order(url: str) -> None:
    async with base.open(url) as database:
        hall = Hall(database, 2)
        await hall.start(counts="2", failures_max=1.0)
        first, second = hall.members
        await hall.say("running", first)
        await hall.say("accepted", first)
        assert (await hall.states())[0] == "running"
        async with database.begin() as one:
            said = [_result(first, ID, "failed"), _result(first, ID, "succeeded")]
            said += [_result(second, "unknown", "failed"), _result("stranger", ID, "failed")]
            news, touched = await book.heard(one, said, hall.now_us, 0)
        assert (news, touched) == (1, {ID})
        await hall.say("running", first)
        assert await hall.states() == ["failed", "sent"]


async def test_what_is_over_is_forgotten_after_a_while(url: str) -> None:
    async with base.open(url) as database:
        hall = Hall(database, 2)
        await hall.start(counts="2", back="x", back_on="failed")
        await hall.say("succeeded", *hall.members)

        async def forgotten(before_us: int) -> Sequence[str]:
            async with database.begin() as one:
                await rollouts.forget(one, before_us)
                await book.forget(one, before_us)
                return [each.id for each in await book.found(one)]

        assert len(await forgotten(hall.now_us)) == 4
        assert await forgotten(hall.now_us + 1) == []
        with pytest.raises(NotThere, match="no rollout r-1"):
            await hall.report()


async def test_an_id_is_given_once(url: str) -> None:
    async with base.open(url) as database:
        hall = Hall(database, 2)
        await hall.start()
        with pytest.raises(NotNow, match="a rollout r-1 already"):
            await hall.start()
        orders = made(Wish(name="x", id=ID), hall.members[:1], 1.0)

        async def add(one: Transaction) -> None:
            await book.add(one, orders, hall.now_us)

        with pytest.raises(NotNow, match="has a command r-1 already"):
            async with database.begin() as one:
                await add(one)


async def test_the_way_back_waits_for_the_end_of_what_it_takes_back(url: str) -> None:
    """A device that is still at it would refuse it, and an id has one effect."""
    async with base.open(url) as database:
        hall = Hall(database, 4)
        await hall.start(counts="4", back="model.rollback", back_on="failed", failures_max=1.0)
        good, works, fails, lasts = hall.members
        await hall.say("succeeded", good)
        await hall.say("accepted", works, fails, lasts)
        await hall.go(61)
        assert await hall.states(BACK) == ["planned"] * 4
        back = (await hall.report()).back
        assert back and back.counts == {"succeeded": 0, "failed": 0, "open": 3}
        said = {(one.device, one.state, one.message) for one in back.open}
        why = "r-1 has not ended there: it is accepted"
        assert said == {(name, "planned", why) for name in (works, fails, lasts)}
        await hall.say("succeeded", works)
        await hall.say("failed", fails)
        assert await hall.states(BACK) == ["planned", "sent", "sent", "planned"]
        await hall.say("succeeded", works, fails, id_=BACK)
        back = (await hall.report()).back
        assert back and back.counts == {"succeeded": 2, "failed": 0, "open": 1}
        assert [one.device for one in back.open] == [lasts]


async def test_whom_the_way_back_did_not_take_back_is_named(
    url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    async with base.open(url) as database:
        hall = Hall(database, 4)
        await hall.start(counts="4", back="model.rollback", back_on="abort")
        back = (await hall.report()).back
        assert back and not any(back.counts.values())
        safe, good, works, mute = hall.members
        await hall.say("succeeded", safe, good)
        await hall.say("running", works)
        async with database.begin() as one:
            await rollouts.abort(one, ID, "it smells", hall.now_us)
        await hall.go(0)
        assert await hall.states(BACK) == ["sent", "sent", "planned", "planned"]
        async with database.begin() as one:
            said = [_result(safe, BACK, "failed", "not_now"), _result(good, BACK, "succeeded")]
            await book.heard(one, said, hall.now_us, 0)
        told = await hall.report()
        assert told.failed == [], "the command itself has failed nowhere"
        assert told.back and told.back.name == "model.rollback"
        assert told.back.counts == {"succeeded": 1, "failed": 1, "open": 1}
        (failed,), (still,) = told.back.failed, told.back.open
        assert (failed.device, failed.state, failed.reason) == (safe, "failed", "not_now")
        assert (still.device, still.state) == (works, "planned")
        view.rollout(told)
        shown = capsys.readouterr().out
        assert "way back, model.rollback: 1 succeeded, 1 failed, 1 open\n" in shown
        assert [line.split()[:3] for line in shown.splitlines()[-2:]] == [
            [safe, "failed", "not_now"],
            [works, "planned", "r-1"],
        ]
        done = await fleet("rollout", "show", ID, "--database", url)
        assert done.returncode == 10, "a way back has failed"
        await hall.say("succeeded", works)
        assert await hall.states(BACK) == ["failed", "succeeded", "sent", "planned"]
        async with database.begin() as one:
            await book.lapse(one, hall.now_us + 2 * 86_400 * S)
        back = (await hall.report()).back
        assert back and {one.device: one.state for one in back.failed} == {
            **{safe: "failed", works: "lapsed"}
        }, "who was never to be taken back is not named"
        assert mute

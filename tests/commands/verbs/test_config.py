"""The orders to the configuration, given as the journal gives them."""

import asyncio
from pathlib import Path
from typing import Any

import msgspec
import pytest

from agent.commands.verbs.config import ConfigVerbs
from agent.errors import HoldfastError, NotNow, RequestError
from tests.sync.rig import eventually
from tests.versions.site import Hands, Site, condition, document, runs


class Order:
    """A command at hand."""

    def __init__(self, id: str) -> None:
        self.id = id
        self.who = f"command {id}"
        self.step = ""
        self.told: list[str] = []

    async def note(self, step: str) -> None:
        self.step = step

    async def tell(self, progress: float, message: str = "") -> None:
        self.told.append(message)


class Desk:
    """Has verbs done."""

    def __init__(self, hands: Hands) -> None:
        self.open: set[str] = set()
        verbs = ConfigVerbs(hands.versions, self._is_open).verbs()
        self.verbs = {one.name: one for one in verbs}

    async def _is_open(self, id: str) -> bool:
        return id in self.open

    async def run(self, name: str, order: Order, again: bool = False, **args: Any) -> Any:
        verb = self.verbs[name]
        act = verb.resume if again else verb.run
        assert act
        return msgspec.to_builtins(await act(msgspec.convert(args, verb.args), order))


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path)


async def test_an_apply_ends_when_its_trial_does(site: Site) -> None:
    async with runs(site.begin(), site.clock) as hands:
        desk, order = Desk(hands), Order("roll-7")
        ends = asyncio.create_task(
            desk.run("config.apply", order, patch={"log_level": "debug"}, why="to see more")
        )
        said = "version 2 is on trial; it changes log_level"
        await eventually(lambda: order.told == [said], "it is on trial")
        assert not ends.done()
        site.clock.gone_s += 121.0
        assert await ends == {
            "number": 2,
            "state": "confirmed",
            "changed": ["log_level"],
            "restart": {},
            "lost": "comments and layout: a patch is of the values alone",
            "why": "all was well after 120 s",
        }
        found = await desk.run("config.versions", Order("x"))
        assert (found["live"], found["versions"][0]["who"]) == (2, "command roll-7")
        shown = await desk.run("config.show", Order("y"), number=1)
        assert "# the first one, by hand" in shown["document"]
        assert (await desk.run("config.rollback", Order("z")))["number"] == 1


async def test_one_that_is_taken_back_has_failed_and_says_why(site: Site) -> None:
    async with runs(site.begin(), site.clock) as hands:
        hands.held = []
        desk, order = Desk(hands), Order("roll-8")
        ends = asyncio.create_task(
            desk.run("config.apply", order, document=document(log_level="debug").decode())
        )
        await eventually(lambda: order.told, "it is on trial")
        hands.held = [condition("domain_down")]
        site.clock.gone_s += 121.0
        with pytest.raises(HoldfastError, match=r"version 2 was taken back: .*domain_down x"):
            await ends


async def test_a_confirmation_does_not_wait_behind_the_apply_that_waits_for_it(site: Site) -> None:
    async with runs(site.begin(), site.clock) as hands:
        desk, order = Desk(hands), Order("roll-9")
        ends = asyncio.create_task(
            desk.run("config.apply", order, patch={"log_level": "debug"}, confirm="manual")
        )
        await eventually(lambda: order.told, "it is on trial")
        await desk.run("config.confirm", Order("ok"), number=2)
        assert (await ends)["why"] == "ordered by command ok"


async def test_while_one_is_on_trial_another_is_told_so_at_once(site: Site) -> None:
    async with runs(site.begin(), site.clock) as hands:
        desk, order = Desk(hands), Order("first")
        patch, other = {"log_level": "debug"}, {"log_level": "error"}
        ends = asyncio.create_task(
            desk.run("config.apply", order, patch=patch, confirm="manual", confirm_s=3600.0)
        )
        await eventually(lambda: order.told, "it is on trial")
        assert not any(one.lane for one in desk.verbs.values()), "none is behind it"
        with pytest.raises(NotNow, match="version 2 is on trial"):
            await desk.run("config.apply", Order("second"), patch=other)
        would = await desk.run("config.apply", Order("dry"), patch=other, dry_run=True)
        assert (would["state"], would["changed"]) == ("dry_run", ["log_level"])
        with pytest.raises(NotNow, match="version 2 is live, not 1"):
            await desk.run("config.apply", Order("late"), patch=other, live=1, dry_run=True)
        back = await desk.run("config.rollback", Order("back"))
        assert (back["number"], back["state"]) == (1, "confirmed")
        with pytest.raises(HoldfastError, match="version 2 was taken back"):
            await ends


async def test_after_a_restart_it_is_gone_on_with_and_not_done_twice(site: Site) -> None:
    begun = site.begin()
    patch = {"jobs": {"jobs_max": 7}}
    async with runs(begun, site.clock) as hands:
        order = Order("roll-10")
        ends = asyncio.create_task(Desk(hands).run("config.apply", order, patch=patch))
        await eventually(lambda: hands.restarts, "the agent is to begin anew")
        ends.cancel()  # as the agent's end does
    begun = site.begin()
    async with runs(begun, site.clock) as hands:
        ends = asyncio.create_task(Desk(hands).run("config.apply", order, again=True, patch=patch))
        await eventually(lambda: hands.versions.shown().steps[0].state == "in_force", "it is")
        site.clock.gone_s += 121.0
        done = await ends
        assert (done["number"], done["changed"], list(done["restart"])) == (2, ["jobs"], ["jobs"])
        assert len(begun.kept.book.versions) == 2
        # One that was broken off before it had chosen anything is done now.
        with pytest.raises(HoldfastError, match="no version 9"):
            await Desk(hands).run("config.rollback", Order("new"), again=True, number=9)
        back = await Desk(hands).run("config.apply", Order("same"), again=True, patch=patch)
        assert back["state"] == "same"


async def test_a_way_back_that_is_sent_to_many_is_of_the_version_that_one_order_brought(
    site: Site,
) -> None:
    async with runs(site.begin(), site.clock) as hands:
        desk, book = Desk(hands), hands.versions.shown

        async def apply(id: str, level: str) -> str:
            order = Order(id)
            ends = asyncio.create_task(
                desk.run("config.apply", order, patch={"log_level": level}, confirm="manual")
            )
            await eventually(lambda: order.told or ends.done(), "it is on trial")
            if id == "bad":
                site.clock.gone_s += 121.0  # nobody confirms it
                with pytest.raises(HoldfastError, match="taken back"):
                    await ends
                return "taken back"
            await desk.run("config.confirm", Order(f"{id}.ok"))
            return str((await ends)["number"])

        async def back(of: str) -> tuple[str, int]:
            told = await desk.run("config.rollback", Order(f"{of}.back"), of=of)
            assert told["number"] == book().live
            return told["why"], told["number"]

        assert await apply("good", "debug") == "2"
        assert await apply("bad", "error") == "taken back"
        assert book().live == 2
        said = "nothing was done: no version that bad has chosen is live"
        assert await back("bad") == (said, 2), "it took it back by itself"
        assert (await back("never"))[1] == 2, "it never had it"
        again = await desk.run("config.apply", Order("same"), document=_live(hands))
        assert again["state"] == "same"
        assert (await back("same"))[1] == 2, "it had that before"
        desk.open.add("queued")
        with pytest.raises(NotNow, match="queued has not ended here"):
            await back("queued")
        assert await apply("unloved", "warning") == "4"
        desk.open.add("unloved")  # its result is still to be written
        assert (await back("good"))[1] == 4, "another order was after it"
        assert (await back("unloved"))[1] == 2
        assert (await back("good"))[1] == 1, "to what was before it, not to what was gone back from"


def _live(hands: Hands) -> str:
    kept = hands.versions._kept
    return kept.document(kept.book.live).decode()


async def test_what_makes_no_sense_is_refused(site: Site) -> None:
    async with runs(site.begin(), site.clock) as hands:
        desk = Desk(hands)
        for args in ({}, {"document": "link: {}", "patch": {}}):
            with pytest.raises(RequestError, match="one of document and patch"):
                await desk.run("config.apply", Order("x"), **args)
        with pytest.raises(HoldfastError, match="log_level: unknown value"):
            await desk.run("config.apply", Order("x"), patch={"log_level": "loud"})
        found = await desk.run(
            "config.apply", Order("x"), patch={"log_level": "debug"}, dry_run=True
        )
        assert found["state"] == "dry_run"
        with pytest.raises(msgspec.ValidationError):
            await desk.run("config.apply", Order("x"), patch={}, confirm_s=1e9)
        assert hands.versions.shown().live == 1

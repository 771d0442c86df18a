"""Versions in an agent that runs: applied, watched, taken back; the hands are the test's."""

import asyncio
from pathlib import Path

import pytest

from agent.errors import ConfigError, HoldfastError, NotNow, StoreFull
from agent.versions import kept
from tests.store.faults.disk import small
from tests.store.faults.test_disk_full import fill
from tests.sync.rig import eventually
from tests.versions.site import FIRST, Hands, Site, condition, document, runs, wish

COLD = document(jobs={"jobs_max": 7})


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path)


async def look(site: Site, hands: Hands, gone_s: float) -> None:
    site.clock.gone_s += gone_s
    await hands.versions.look()


async def test_what_can_be_changed_now_is_and_stays_if_all_is_well(site: Site) -> None:
    async with runs(site.begin(), site.clock) as hands:
        done = await hands.versions.apply(wish(why="to see more", who="a test"))
        assert (done.number, done.state, done.changed) == (2, "trial", ["log_level"])
        assert hands.done == [("log_level", "debug")]
        assert (site.kept / "0002.yaml").read_bytes() == document(log_level="debug")
        assert hands.names() == {"config_on_trial", "config_overrides_file"}
        await look(site, hands, 100.0)
        assert hands.versions.shown().trial
        await look(site, hands, 21.0)
        shown = hands.versions.shown()
        assert (shown.live, shown.confirmed, shown.in_force, shown.trial) == (2, 2, 2, None)
        assert shown.versions[0].who == "a test"
        assert (await hands.versions.outcome("an-order")).why == "all was well after 120 s"
        assert hands.names() == {"config_overrides_file"}
    assert site.begin().settings.log_level == "debug"
    assert not hands.restarts


async def test_one_that_fails_its_trial_is_taken_back_and_it_is_said_why(site: Site) -> None:
    async with runs(site.begin(), site.clock) as hands:
        await hands.versions.apply(wish())
        hands.link_s = None
        hands.held = [condition("broker_refused")]
        told = asyncio.create_task(hands.versions.outcome("an-order"))
        await look(site, hands, 121.0)
        step = await told
        assert (step.number, step.state) == (2, "taken_back")
        assert "broker_refused x" in step.why
        assert "config_taken_back" in hands.names()
        assert [value for _, value in hands.done] == ["debug", "info"]
        shown = hands.versions.shown()
        assert (shown.live, shown.in_force, shown.trial) == (1, 1, None)
        await hands.versions.confirm(why="it is known")
        assert hands.names() == set()
    assert site.begin().number == 1


async def test_a_section_that_refuses_leaves_all_as_it_was(site: Site) -> None:
    async with runs(site.begin(), site.clock) as hands:
        hands.refuses = lambda name, settings: (
            "no such level" if (name, settings.log_level) == ("log_level", "debug") else ""
        )
        text = document(log_level="debug", domains={"d": {"models": ["m"]}})
        with pytest.raises(HoldfastError, match="no such level"):
            await hands.versions.apply(wish(document=text))
        assert hands.versions.shown().live == 1
        changed = [(name, bool(value)) for name, value in hands.done]
        assert changed == [("domains", True), ("domains", False), ("log_level", True)], "undone"
        assert hands.done[-1] == ("log_level", "info")
        assert (await hands.versions.outcome("an-order")).state == "taken_back"
        await hands.versions.apply(wish(document=document(log_level="error"), order="another"))
        assert hands.versions.shown().live == 3


async def test_what_takes_a_restart_begins_anew_and_goes_on_there(site: Site) -> None:
    async with runs(site.begin(), site.clock) as hands:
        done = await hands.versions.apply(wish(document=COLD))
        assert done.restart == {"jobs": "it is read at the start alone"}
        assert len(hands.restarts) == 1
        assert not hands.done
        for order in (hands.versions.apply(wish()), hands.versions.roll_back(1)):
            with pytest.raises(NotNow, match="about to begin anew"):
                await order
        told = asyncio.create_task(hands.versions.outcome("an-order"))
        await look(site, hands, 500.0)
        assert not told.done(), "that is for the next to tell"
        told.cancel()
    async with runs(site.begin(), site.clock) as hands:
        hands.link_s = None
        await eventually(lambda: hands.versions.shown().steps[0].state == "in_force", "it is")
        assert hands.versions.knows("an-order")
        await look(site, hands, 121.0)
        assert len(hands.restarts) == 1, "the way back takes one too"
    begun = site.begin()
    assert (begun.number, begun.on_trial, begun.settings.jobs.jobs_max) == (1, None, 1000)
    async with runs(begun, site.clock) as hands:
        assert (await hands.versions.outcome("an-order")).state == "taken_back"
    states = [state for _, state in site.steps(begun)][2:]
    assert states == ["chosen", "started", "in_force", "taken_back", "confirmed"]


async def test_one_that_waits_for_somebody_stays_when_he_comes(site: Site) -> None:
    async with runs(site.begin(), site.clock) as hands:
        for order, confirmed in (("first", True), ("second", False)):
            text = document(log_level="debug" if confirmed else "error")
            await hands.versions.apply(
                wish(document=text, confirm="manual", confirm_s=60.0, order=order)
            )
            if confirmed:
                with pytest.raises(NotNow, match="2 is live, not 1"):
                    await hands.versions.confirm(1)
                await hands.versions.confirm(2)
            await look(site, hands, 61.0)
            assert hands.versions.shown().live == 2


async def test_a_rollback_ends_a_trial_and_leads_to_any_version(site: Site) -> None:
    async with runs(site.begin(), site.clock) as hands:
        with pytest.raises(HoldfastError, match="no version was confirmed before"):
            await hands.versions.roll_back(None)
        await hands.versions.apply(wish(order="one"))
        with pytest.raises(NotNow, match="version 2 is on trial"):
            await hands.versions.apply(wish(document=COLD))
        done = await hands.versions.roll_back(None, "two")
        assert (done.number, done.state) == (1, "confirmed")
        assert (await hands.versions.outcome("one")).state == "taken_back"
        assert (await hands.versions.outcome("two")).state == "confirmed"
        assert hands.done[-1] == ("log_level", "info")
        assert (await hands.versions.roll_back(2)).state == "confirmed"
        assert hands.versions.shown().live == 2
        assert (await hands.versions.roll_back(None)).number == 1
        assert (await hands.versions.roll_back(1)).state == "same"
        with pytest.raises(HoldfastError, match="no version 9 is kept"):
            await hands.versions.roll_back(9)


async def test_a_rollback_with_a_restart_is_told_by_the_agent_that_comes(site: Site) -> None:
    begun = site.begin()
    async with runs(begun, site.clock) as hands:
        await hands.versions.apply(wish(document=COLD, confirm="start"))
    async with runs(site.begin(), site.clock) as hands:
        await eventually(lambda: not hands.versions.shown().trial, "it is confirmed")
        done = await hands.versions.roll_back(None, "back")
        assert (done.state, done.restart.keys(), len(hands.restarts)) == ("trial", {"jobs"}, 1)
    async with runs(site.begin(), site.clock) as hands:
        step = await hands.versions.outcome("back")
        assert (step.number, step.state) == (1, "confirmed")


async def test_a_dry_run_checks_all_and_changes_nothing(site: Site) -> None:
    async with runs(site.begin(), site.clock) as hands:
        patch = {"log_level": "debug", "jobs": {"jobs_max": 7}}
        found = await hands.versions.plan(wish(document=None, patch=patch))
        assert (found.state, found.number) == ("dry_run", 2)
        assert (found.changed, list(found.restart)) == (["jobs", "log_level"], ["jobs"])
        assert "comments" in found.lost
        assert (await hands.versions.plan(wish(document=FIRST.encode()))).state == "same"
        for wrong, said in (
            (b"link: {ack_from: broker}\nlog_level: loud\n", "the document:2: log_level"),
            (document(device_id="another"), "device_id"),
            (
                b"a: &a [x, x]\n"
                + b"".join(
                    b"%c: &%c [*%c, *%c]\n" % (98 + i, 98 + i, 97 + i, 97 + i) for i in range(20)
                ),
                "100000 values",
            ),
        ):
            for order in (hands.versions.plan, hands.versions.apply):
                with pytest.raises(ConfigError, match=said):
                    await order(wish(document=wrong))
        with pytest.raises(ConfigError, match="at most"):
            await hands.versions.apply(wish(document=FIRST.encode() + b"#" * (128 << 10)))
        assert [path.name for path in site.kept.glob("*.yaml")] == ["0001.yaml"]
        assert hands.versions.shown().live == 1


async def test_an_order_for_another_version_is_refused(site: Site) -> None:
    async with runs(site.begin(), site.clock) as hands:
        with pytest.raises(NotNow, match="version 1 is live, not 7"):
            await hands.versions.apply(wish(live=7))
        assert (await hands.versions.apply(wish(live=1))).number == 2


async def test_the_file_read_again_is_a_version_and_what_takes_a_restart_waits(
    site: Site,
) -> None:
    async with runs(site.begin(), site.clock) as hands:
        site.file.write_bytes(document(log_level="debug", jobs={"jobs_max": 7}))
        await hands.versions.again()
        assert ("log_level", "debug") in hands.done
        assert hands.names() == {"config_restart_due", "config_on_trial"}
        shown = hands.versions.shown()
        assert (shown.live, shown.in_force, list(shown.waits)) == (2, 1, ["jobs"])
        await look(site, hands, 500.0)
        assert hands.versions.shown().trial, "until a start has shown that it is good"
        site.file.write_bytes(document(log_level="error"))
        hands.versions.ask()
        await eventually(lambda: ("log_level", "error") in hands.done, "it is read")
        await eventually(lambda: hands.versions.shown().in_force == 3, "all of it holds")
        await eventually(lambda: hands.names() == set(), "nothing waits")
        site.file.write_bytes(b"link: {}")
        hands.versions.ask()
        await eventually(lambda: "domains_not_applied" in hands.names(), "it is said")
        assert hands.versions.shown().live == 3


async def test_of_a_service_more_restarts_than_systemd_bears_are_refused(site: Site) -> None:
    for i in range(kept.APPLIES_MAX):
        async with runs(site.begin(), site.clock) as hands:
            await eventually(lambda h=hands: not h.versions.shown().trial, "none")  # type: ignore[misc]
            text = document(jobs={"jobs_max": i + 7})
            await hands.versions.apply(wish(document=text, confirm="start"))
    async with runs(site.begin(), site.clock) as hands:
        await eventually(lambda: not hands.versions.shown().trial, "it is confirmed")
        with pytest.raises(NotNow, match="3 times within 10 minutes"):
            await hands.versions.apply(wish(document=COLD.replace(b"7", b"77")))
        hot = await hands.versions.apply(wish(document=None, patch={"log_level": "debug"}))
        assert hot.state == "trial", "what takes none is free"
        assert (await hands.versions.roll_back(1)).restart, "the way back is open"


async def test_on_a_full_disk_nothing_is_applied_but_what_failed_is_taken_back(
    tmp_path: Path,
) -> None:
    with small("tmpfs", tmp_path) as place:
        (tmp_path / "site").mkdir()
        site = Site(tmp_path / "site")
        site.state = place
        async with runs(site.begin(), site.clock) as hands:
            fill(place / "ballast")
            with pytest.raises(StoreFull, match="nothing was changed"):
                await hands.versions.apply(wish())
            assert not hands.done
            (place / "ballast").unlink()
            await hands.versions.apply(wish())
            fill(place / "ballast")
            hands.held = [condition("domain_down")]
            await look(site, hands, 121.0)
            assert hands.done[-1] == ("log_level", "info"), "it is done, though not written"
            assert "config_unwritten" in hands.names()
            (place / "ballast").unlink()
            await look(site, hands, 1.0)
            assert "config_unwritten" not in hands.names()
            assert (await hands.versions.outcome("an-order")).state == "taken_back"
        assert site.begin().number == 1

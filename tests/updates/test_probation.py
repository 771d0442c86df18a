"""Probation over restarts, and what it judges by."""

import asyncio
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from agent import config
from agent.inference.domains.choices import Choices
from agent.updates import verdict
from agent.updates.probation import TRIES_MAX
from agent.updates.trials import Seen, Trial, Trials
from agent.updates.verdict import CRASHES_MAX
from bench.models import loop
from tests.inference.catalog.repository import describe, install
from tests.inference.domains.rig import put, rules, until
from tests.updates.site import Journal, Site, begun, first

RULES = config.Probation(probation_s=600.0, deaths_max=1, calls_min=10)
STEP = '{"at": "activating", "name": "m", "version": 2, "former": 1}'


def trial(**more: Any) -> Trial:
    known = Trial(command="c-1", name="m", version=2, former=1, probation_s=600.0, left_s=600.0)
    return replace(known, **{"state": "watched", **more})


@pytest.fixture
def at_2(tmp_path: Path) -> Path:
    """Version 2 was activated by a command, and is watched."""
    first(tmp_path, 1, 2)
    Choices(tmp_path / "models.json").choose("m", 2, 1)
    Trials(tmp_path / "trials.json").note(trial())
    Journal(tmp_path / "c-1.log").write({"step": STEP})
    return tmp_path


def left_of(site: Site) -> float:
    known = site.trials.of("m")
    assert known
    return known.left_s


async def test_it_goes_on_by_running_time_and_the_command_gets_its_result(at_2: Path) -> None:
    async with begun(at_2) as site:
        await until(lambda: left_of(site) < 600.0, "time goes by")
        left_s = left_of(site)
    kept = Trials(at_2 / "trials.json").of("m")
    assert kept
    assert kept.left_s <= left_s, "an end in order is no loss"
    async with begun(at_2, crashed=True) as site:
        assert left_of(site) <= left_s
        order = site.ordered("model.activate", name="m", version=2)
        await until(lambda: "model_on_probation" in site.held, "it is watched")
        site.probation._leave("m")
        nearly = replace(site.trials.of("m"), left_s=0.05)  # type: ignore[type-var]
        site.trials.note(nearly)
        site.probation._begin(nearly)
        done = await order
        assert done["state"] == "succeeded", done
        assert site.held == {}
        assert await site.rig.version() == 2


async def test_a_version_that_the_agent_does_not_live_with_is_taken_back_before_it_begins(
    at_2: Path,
) -> None:
    for crash in range(CRASHES_MAX):
        async with begun(at_2, crashed=True, wait=False) as site:
            known = site.trials.of("m")
            assert known
            assert (known.state, known.crashes) == ("watched", crash + 1)
    async with begun(at_2, crashed=False, wait=False) as site:
        assert "model_on_probation" in site.held, "to be ended in order is no crash"
    async with begun(at_2, crashed=True) as site:
        assert await site.rig.version() == 1
        assert "ended unasked 3 times" in site.held["model_taken_back"]
        done = await site.ordered("model.activate", name="m", version=2)
        assert "taken back: m/2: the agent ended unasked 3 times" in done["message"]
    async with begun(at_2) as site:
        assert await site.rig.version() == 1
        assert "model_taken_back" in site.held, "until somebody sees to it"


async def test_one_that_ends_the_agent_while_it_is_activated_is_given_up(tmp_path: Path) -> None:
    first(tmp_path, 1, 2)
    Choices(tmp_path / "models.json").choose("m", 1, None)
    Trials(tmp_path / "trials.json").note(trial(state="activating", tries=TRIES_MAX))
    Journal(tmp_path / "c-1.log").write({"step": STEP})
    async with begun(tmp_path, crashed=True) as site:
        done = await site.ordered("model.activate", name="m", version=2)
        assert "taken back: the agent ended 3 times" in done["message"]
        assert await site.rig.version() == 1
        assert len(site.trials.all()) == 0


async def test_a_version_that_cannot_begin_after_a_restart_is_taken_back(at_2: Path) -> None:
    describe(at_2 / "models/m/2", latency_ms_max=1e-6)
    async with begun(at_2, probation=RULES) as site:
        done = await site.ordered("model.activate", name="m", version=2)
        assert "taken back: m/2: it could not begin" in done["message"]
        assert "allows 1e-06" in done["message"]
        assert await site.rig.version() == 1
        chosen = site.rig.domains.chosen("m")
        assert chosen
        assert (chosen.version, chosen.previous) == (1, 2)


async def test_one_that_was_being_taken_back_is(at_2: Path) -> None:
    Trials(at_2 / "trials.json").note(trial(state="taking_back", why="it was too slow"))
    async with begun(at_2, crashed=True) as site:
        assert await site.rig.version() == 1
        done = await site.ordered("model.activate", name="m", version=2)
        assert "taken back: m/2: it was too slow; 1 serves again" in done["message"]


async def test_a_slow_version_is_taken_back(tmp_path: Path) -> None:
    root = tmp_path / "models"
    install(root, loop(4), "turns", 1)
    install(root, loop(64), "turns", 2)
    Choices(tmp_path / "models.json").choose("turns", 1, None)
    async with begun(tmp_path, domains={"d": rules("turns")}, probation=RULES) as site:

        async def ask(count: int) -> None:
            for _ in range(count):
                await site.rig.ask("turns", [1000], name="turns")

        await ask(12)
        order = site.ordered("model.activate", name="turns")
        await until(lambda: "model_on_probation" in site.held, "it serves")
        while not order.done():
            await ask(1)
        done = await order
        assert "its p95 is" in done["message"], done
        assert "latency_ratio_max is 2" in done["message"]
        assert (await site.rig.ask("turns", [1], name="turns")).version == 1


async def test_no_time_goes_by_while_no_model_may_run(at_2: Path) -> None:
    async with begun(at_2, wait=False) as site:
        site.rig.hold.set("safe mode", "lift it")
        await asyncio.sleep(0)
        before, number = left_of(site), site.probation._changes.number
        watch = next(iter(site.probation._tasks.values()))
        for _ in range(200):
            await asyncio.sleep(0)
        assert not watch.done()
        assert (left_of(site), site.probation._changes.number) == (before, number)
        site.rig.hold.lift()


def test_bounds(tmp_path: Path) -> None:
    calm = Seen(100, 1, 10.0)
    cases: list[tuple[dict[str, Any], str]] = [
        ({"seen": calm}, ""),
        ({"seen": Seen(9, 9)}, ""),  # too few to say
        ({"seen": Seen(100, 6, 10.0)}, ""),
        ({"seen": Seen(100, 7, 10.0)}, "7 of 100 calls failed"),
        ({"seen": Seen(100, 1, 20.0)}, ""),
        ({"seen": Seen(100, 1, 20.1)}, "its p95 is 20.1 ms"),
        ({"seen": Seen(100, 1, 4.9), "before": Seen(100, 1, 0.1)}, ""),  # a busy machine's
        ({"seen": Seen(100, 1, 9.0), "before": Seen(100, 1)}, ""),
        ({"deaths": 1}, ""),
        ({"deaths": 2}, "2 of its processes died"),
    ]
    for more, said in cases:
        found = verdict.breach(trial(**{"before": calm, **more}), RULES)
        assert found.startswith(said), (more, found)
        assert bool(found) == bool(said), (more, found)


def test_a_file_that_cannot_be_read_is_said_and_nothing_is_on_probation(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "trials.json"
    for content in (b"{", b'{"m": {"name": "m"}}', b"\xff", b"[" * 100_000):
        path.write_bytes(content)
        assert Trials(path).all() == []
        assert "no version is on probation" in caplog.text
        caplog.clear()
    put(tmp_path / "models", 1)

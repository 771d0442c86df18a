"""The way back to what served before an order: whatever was tried since; and in safe mode."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from agent.inference.domains.choices import Choices
from agent.updates.trials import Trial, Trials
from bench.models import not_numbers
from tests.inference.catalog.repository import install
from tests.inference.domains.rig import until
from tests.updates.site import Journal, Site, begun, first
from tests.updates.test_probation import RULES

R_1 = Trial(command="r-1", name="m", version=2, former=1, probation_s=600.0, left_s=600.0)


@pytest.fixture
def at_2(tmp_path: Path) -> Path:
    """r-1 activated version 2, which passed; as the version before this one wrote it down."""
    first(tmp_path, 1, 2, 3)
    install(tmp_path / "models", not_numbers(), version=4)
    Choices(tmp_path / "models.json").choose("m", 2, 1)
    noted(tmp_path, replace(R_1, state="passed"))
    path = tmp_path / "trials.json"
    known = json.loads(path.read_text())
    del known["m"]["stays"]
    path.write_text(json.dumps(known))
    return tmp_path


def noted(folder: Path, trial: Trial) -> None:
    Trials(folder / "trials.json").note(trial)


async def taken_back(site: Site, id: str = "r-1.back", of: str = "r-1") -> dict[str, Any]:
    done = await site.ordered("model.rollback", id, of=of)
    assert done["state"] == "succeeded", done
    result: dict[str, Any] = done["result"]
    return result


async def test_a_version_that_never_served_leaves_what_was_known_before(at_2: Path) -> None:
    async with begun(at_2) as site:
        done = await site.ordered("model.activate", "r-2", name="m", version=4)
        assert done["state"] == "failed"
        rows = {one.version: one.probation for one in (await site.models.rows("m")).models}
        assert (rows[2], rows[4]) == ("passed", "")
    async with begun(at_2) as site:
        assert await taken_back(site) == {"name": "m", "version": 1, "former": 2}
        assert await site.rig.version() == 1
        assert "does not serve" in (await taken_back(site, "again"))["why"]
        assert "r-2 activated is known" in (await taken_back(site, "r-2.back", "r-2"))["why"]
        assert await site.rig.version() == 1


async def test_a_version_that_was_taken_back_is_not_the_one_to_go_back_to(at_2: Path) -> None:
    async with begun(at_2, probation=RULES, versions_max=1) as site:
        order = site.ordered("model.activate", "r-2", name="m", version=3)
        await until(lambda: "model_on_probation" in site.held, "it serves")
        assert "m/2 of r-1 does not serve" in (await taken_back(site, "early"))["why"]
        await site.ordered("model.rollback", "by hand", name="m")
        assert "taken back" in (await order)["message"]
        assert site.rig.domains.former("m") == 3
        assert 1 not in await site.models._thin_out("m", 4), "it may be needed still"
        assert await taken_back(site) == {"name": "m", "version": 1, "former": 2}
        assert await site.rig.version() == 1


async def test_what_stays_is_known_when_what_was_tried_since_is_removed(at_2: Path) -> None:
    tried = replace(R_1, command="r-2", version=4, former=2, state="taken_back", why="it was slow")
    noted(at_2, replace(tried, stays=replace(R_1, state="passed")))
    async with begun(at_2) as site:
        assert "it was slow" in site.held["model_taken_back"]
        done = await site.ordered("model.remove", "r-3", name="m", version=4)
        assert (done["state"], site.held) == ("succeeded", {})
    async with begun(at_2) as site:
        assert (await taken_back(site))["version"] == 1
        assert await site.rig.version() == 1


async def test_one_that_was_watched_is_watched_still(at_2: Path) -> None:
    noted(at_2, replace(R_1, state="watched"))
    async with begun(at_2, probation=RULES) as site:
        done = await site.ordered("model.activate", "r-2", name="m", version=4)
        assert done["state"] == "failed"
        assert "m/2 serves since" in site.held["model_on_probation"]
        known = site.probation.watched("m")
        assert known
        await until(
            lambda: (now := site.trials.of("m")) is not None and now.left_s < known.left_s,
            "time goes by",
        )


@pytest.mark.parametrize("state", ["watched", "passed"])
async def test_in_safe_mode_it_is_what_is_begun_with_then(at_2: Path, state: Any) -> None:
    noted(at_2, replace(R_1, state=state))
    async with begun(at_2, wait=False, held="safe mode") as site:
        assert await taken_back(site) == {"name": "m", "version": 1, "former": 2}
        assert await taken_back(site, "again") == {
            "name": "m",
            "version": 1,
            "why": "nothing was done: m/2 of r-1 does not serve",
        }
        known = site.trials.of("m")
        assert known
        assert known.state == ("taken_back" if state == "watched" else state)
        assert not site.rig.domains.named("d").models, "no order starts a process"
        site.rig.hold.lift()
        await site.rig.ready()
        assert await site.rig.version() == 1
        assert site.held == {}


@pytest.mark.parametrize(("version", "state"), [(2, "watched"), (1, "watched"), (1, "taking_back")])
async def test_killed_in_safe_mode_it_goes_on(at_2: Path, version: int, state: Any) -> None:
    """Behind its step, behind the choice, and behind the note that follows."""
    noted(at_2, replace(R_1, state=state))
    Choices(at_2 / "models.json").choose("m", version, 3 - version)
    step = '{"at": "rolling_back", "name": "m", "version": 1, "former": 2}'
    Journal(at_2 / "r-1.back.log").write({"step": step})
    async with begun(at_2, crashed=True, wait=False, held="safe mode") as site:
        assert await taken_back(site) == {"name": "m", "version": 1, "former": 2}
        known = site.trials.of("m")
        assert known
        assert known.state == "taken_back"
    async with begun(at_2) as site:
        assert await site.rig.version() == 1


async def test_in_safe_mode_one_that_cannot_go_back_stays_on_probation(at_2: Path) -> None:
    noted(at_2, replace(R_1, state="watched"))
    shutil.rmtree(at_2 / "models/m/1")
    async with begun(at_2, wait=False, held="safe mode", probation=RULES) as site:
        done = await site.ordered("model.rollback", "r-1.back", of="r-1")
        assert "no version 1 of model 'm'" in done["message"]
        assert site.probation.watched("m")
        site.rig.hold.lift()
        await site.rig.ready()
        assert await site.rig.version() == 2
        assert site.probation.watched("m")

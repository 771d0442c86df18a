"""Commands to the models, on real domains: what they do, refuse, and take back."""

import asyncio
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from agent import config
from agent.errors import ModelError, NotNow, NotThere, RequestError
from agent.inference.admission import RUNS
from agent.inference.catalog.__main__ import sign
from bench.models import not_numbers
from tests.inference.catalog.repository import describe, install, linear, pair
from tests.inference.domains.rig import FAULTY, marked, put, rules, until
from tests.outside import ROOT
from tests.updates.packs import files_of
from tests.updates.site import Journal, begun, drop, first

WATCHED = config.Probation(probation_s=600.0, deaths_max=0, calls_min=5)


@pytest.fixture
def made(tmp_path: Path) -> Path:
    """Where versions are made that a command brings."""
    first(tmp_path)
    return tmp_path / "made"


def golden(folder: Path, factor: float) -> Path:
    x = np.ones((2, 4), np.float32)
    describe(folder, golden=[pair(folder, {"x": x}, {"y": factor * x})])
    return folder


async def test_a_version_is_installed_proved_watched_and_stays(made: Path, tmp_path: Path) -> None:
    order = drop(tmp_path, golden(put(made, 2), 2.0), zstd=True)
    async with begun(tmp_path) as site:
        done = await site.ordered("model.install", **order, activate=True)
        assert done["state"] == "succeeded", done
        result = done["result"]
        assert (result["version"], result["former"], result["probation"]) == (2, 1, "passed")
        assert (result["installed"], result["proved"]) == (True, True)
        assert result["seen"]["failed"] == 0
        assert result["seen"]["calls"] >= 5, "its golden outputs once more"
        assert await site.rig.version() == 2
        assert site.there() == ["m", "m/1", "m/2", "m/2/golden"]
        assert site.held == {}
        again = await site.ordered("model.install", "c-2", **order, activate=True)
        assert again["result"] == {
            "name": "m",
            "version": 2,
            "probation": "none: it served already",
        }
    async with begun(tmp_path) as site:
        assert await site.rig.version() == 2


async def test_what_is_installed_serves_when_it_is_told_to_and_not_at_the_next_start(
    made: Path, tmp_path: Path
) -> None:
    async with begun(tmp_path) as site:
        done = await site.ordered("model.install", **drop(tmp_path, put(made, 2)))
        assert done["state"] == "succeeded", done
        assert await site.rig.version() == 1
    async with begun(tmp_path) as site:
        assert await site.rig.version() == 1
        found = (await site.ordered("model.list", "c-2"))["result"]["models"]
        assert [(one["version"], one.get("serves", False)) for one in found] == [
            (1, True),
            (2, False),
        ]
        done = await site.ordered("model.activate", "c-3", name="m")
        assert done["result"]["version"] == 2
        done = await site.ordered("model.rollback", "c-4", name="m")
        assert (done["result"]["version"], done["result"]["former"]) == (1, 2)
        assert await site.rig.version() == 1


async def test_what_must_not_serve_is_not_installed_and_changes_nothing(
    made: Path, tmp_path: Path
) -> None:
    put(tmp_path / "models", 3, latency_ms_max=1000.0)
    bad = {
        "not finite": install(made / "a", not_numbers(), version=2),
        "golden[0]: output 'y'": golden(put(made / "b", 2), 3.0),
        "with other content": put(made / "c", 3),
        "is for the engine speech": put(
            made / "d",
            2,
            engine="speech",
            options={"rate_hz": 16000, "hop_samples": 256, "window_samples": 512},
        ),
    }
    orders: list[tuple[dict[str, Any], type, str]] = [
        (drop(tmp_path, folder, f"{i}.tar"), ModelError, said)
        for i, (said, folder) in enumerate(bad.items())
    ]
    good = drop(tmp_path, put(made, 2))
    (tmp_path / "drop" / "out").symlink_to("/etc/passwd")
    orders += [
        ({**good, "sha256": "0" * 64}, ModelError, "sha256 is"),
        ({**good, "path": "none.tar"}, ModelError, "cannot be unpacked"),
        ({**good, "path": "../made/m"}, RequestError, "leads out of"),
        ({**good, "path": "out"}, RequestError, "leads out of"),
        ({**good, "path": "/etc/passwd"}, RequestError, "leads out of"),
        ({**good, "target": "x"}, RequestError, "expected either"),
        ({"path": "m.tar"}, RequestError, "expected either"),
        ({"target": "x"}, RequestError, "nothing is fetched here"),
    ]
    async with begun(tmp_path, domains={"d": rules("m", engine="onnx")}) as site:
        before = site.there()
        for i, (order, kind, said) in enumerate(orders):
            done = await site.ordered("model.install", f"c-{i}", **order, activate=True)
            assert done["state"] == "failed", (said, done)
            assert said in done["message"], (said, done)
            assert kind.__name__ in done["kind"]
            assert site.there() == before, said
        assert await site.rig.version() == 3
        assert len(site.trials.all()) == 0


async def test_the_disk_is_looked_at_first(made: Path, tmp_path: Path) -> None:
    order = drop(tmp_path, put(made, 2))
    async with begun(tmp_path, free_bytes_min=10**15) as site:
        done = await site.ordered("model.install", **order)
        assert "models.free_bytes_min" in done["message"]
        assert site.there() == ["m", "m/1"]


async def test_the_oldest_that_nobody_needs_go(made: Path, tmp_path: Path) -> None:
    first(tmp_path, 1, 2, 3, 4)
    async with begun(tmp_path, versions_max=3) as site:
        await site.rig.domains.load("m", 2)
        await site.rig.domains.load("m", 1)  # so 1 serves, and 2 did before
        done = await site.ordered("model.install", **drop(tmp_path, put(made, 5)))
        assert done["result"]["removed"] == [3, 4]
        assert site.there() == ["m", "m/1", "m/2", "m/5"]


async def test_a_version_in_use_is_not_removed_and_another_one_is(
    made: Path, tmp_path: Path
) -> None:
    first(tmp_path, 1, 2, 3)
    put(tmp_path / "models", 1, "other")
    async with begun(
        tmp_path, domains={"d": rules("m"), "e": rules("other")}, probation=WATCHED
    ) as site:
        await site.rig.domains.load("m", 1)
        watched = site.ordered("model.activate", name="m", version=2)
        await until(lambda: "model_on_probation" in site.held, "it is watched")
        refused = {
            ("m", 2): "on probation",
            ("m", 1): "on probation",
            ("m", 9): "no version 9",
            ("none", 1): "no version 1",
            ("other", 1): "in use",
        }
        for i, ((name, version), said) in enumerate(refused.items()):
            done = await site.ordered("model.remove", f"r-{i}", name=name, version=version)
            assert (done["state"], said in done["message"]) == ("failed", True), done
        assert (await site.ordered("model.remove", "r-9", name="m", version=3))["state"] == (
            "succeeded"
        )
        assert site.there() == ["m", "m/1", "m/2", "other", "other/1"]
        back = await site.ordered("model.rollback", "c-2", name="m")
        assert back["result"]["version"] == 1
        assert "taken back: m/2: model.rollback was ordered" in (await watched)["message"]
        assert site.held == {}, "who ordered it knows"
        assert (await site.ordered("model.remove", "r-10", name="m", version=2))["state"] == (
            "succeeded"
        )
        assert (await site.ordered("model.rollback", "c-3", name="m"))["kind"][0] == NotNow.__name__
        assert await site.rig.version() == 1


async def test_a_way_back_that_is_sent_to_many_is_of_the_version_that_one_order_brought(
    tmp_path: Path,
) -> None:
    first(tmp_path, 1, 2)
    early = Journal(tmp_path / "early.log", "early")
    early.write({"step": '{"at":"fetching"}'})
    async with begun(tmp_path) as site:
        await site.rig.domains.load("m", 1)
        done = await site.ordered("model.activate", "good", name="m", version=2)
        assert done["state"] == "succeeded", done

        async def back(of: str, **more: str) -> Any:
            done = await site.ordered("model.rollback", f"{of}.back{len(told)}", of=of, **more)
            told.append(done.get("result", {}).get("version"))
            return done.get("message") or done["result"].get("why")

        told: list[int | None] = []
        assert (
            await back("never") == "nothing was done: no version that never activated is known here"
        )
        assert "early has not ended here" in await back("early")
        assert "activated a version of m, not of other" in await back("good", name="other")
        assert await site.rig.version() == 2
        assert await back("good") is None
        assert await site.rig.version() == 1
        assert await back("good") == "nothing was done: m/2 of good does not serve"
        assert await site.rig.version() == 1
        assert told == [None, None, None, 1, 1]
        assert "expected name, or of" in (await site.ordered("model.rollback", "none"))["message"]


async def test_a_version_that_kills_its_worker_is_taken_back(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It passes its admission, and dies of the calls that come then."""
    monkeypatch.setenv("PYTHONPATH", str(FAULTY))
    folder = install(made, marked(linear(weight=2.0), "run 12"), version=2)
    async with begun(tmp_path, probation=WATCHED) as site:
        order = site.ordered("model.install", **drop(tmp_path, folder), activate=True)
        await until(lambda: "model_on_probation" in site.held, "it serves")
        while not order.done():
            await asyncio.gather(site.rig.ask(), return_exceptions=True)
        done = await order
        assert "taken back: m/2: 1 of its processes died" in done["message"], done
        assert "1 serves again" in done["message"]
        assert await site.rig.version() == 1
        assert "processes died" in site.held["model_taken_back"]
        assert site.there() == ["m", "m/1", "m/2"]
        await site.ordered("model.remove", "c-2", name="m", version=2)
        assert site.held == {}


async def test_a_version_whose_calls_fail_is_taken_back(made: Path, tmp_path: Path) -> None:
    """It takes other inputs than those who ask."""
    folder = install(made, linear(width=5, weight=2.0), version=2)
    async with begun(tmp_path, probation=WATCHED) as site:
        await asyncio.gather(*(site.rig.ask() for _ in range(10)))
        order = site.ordered("model.install", **drop(tmp_path, folder), activate=True)
        await until(lambda: "model_on_probation" in site.held, "it serves")
        while not order.done():
            await asyncio.gather(site.rig.ask(), return_exceptions=True)
        done = await order
        assert "calls failed" in done["message"], done
        assert await site.rig.version() == 1


async def test_the_outputs_are_looked_at_once_more_when_it_serves(
    made: Path, tmp_path: Path
) -> None:
    """What changed on the disk between its proof and its service is no version."""
    folder = golden(put(made, 2), 2.0)
    async with begun(tmp_path, probation=WATCHED) as site:
        load = site.rig.domains.load

        async def loads(name: str, version: int | None) -> Any:
            found = await load(name, version)
            if version == 2:
                for path in (site.root / "m/2/golden").iterdir():
                    path.write_bytes(b"")
            return found

        site.rig.domains.load = loads  # type: ignore[method-assign]
        done = await site.ordered("model.install", **drop(tmp_path, folder), activate=True)
        assert "taken back" in done["message"], done
        assert "golden[0].inputs" in done["message"], done
        assert await site.rig.version() == 1


async def test_an_order_of_somebody_else_ends_a_probation(made: Path, tmp_path: Path) -> None:
    first(tmp_path, 1, 2, 3)
    async with begun(tmp_path, probation=WATCHED) as site:
        await site.rig.domains.load("m", 1)
        order = site.ordered("model.activate", name="m", version=2)
        await until(lambda: "model_on_probation" in site.held, "it serves")
        await site.rig.domains.load("m", 3)
        assert "overtaken: m/2: version 3 was ordered" in (await order)["message"]
        assert site.held == {}
        assert await site.rig.version() == 3


async def test_the_first_version_of_a_model_has_nothing_to_go_back_to(
    made: Path, tmp_path: Path
) -> None:
    (tmp_path / "models" / "m").rename(tmp_path / "away")
    folder = golden(put(made, 2), 2.0)
    async with begun(tmp_path, wait=False) as site:
        done = await site.ordered("model.install", **drop(tmp_path, folder), activate=True)
        assert done["state"] == "succeeded", done
        assert done["result"].get("former") is None
        assert await site.rig.version() == 2


async def test_a_version_of_a_model_that_no_domain_has_is_kept_unproved(
    made: Path, tmp_path: Path
) -> None:
    async with begun(tmp_path) as site:
        done = await site.ordered("model.install", **drop(tmp_path, put(made, 1, "new")))
        assert done["result"] == {"name": "new", "version": 1, "installed": True}
        done = await site.ordered("model.activate", "c-2", name="new")
        assert NotThere.__name__ in done["kind"]
        assert len(site.trials.all()) == 0


async def test_what_the_fleet_publishes_is_fetched_and_dropped(made: Path, tmp_path: Path) -> None:
    folder = put(made, 2)
    order = drop(tmp_path, folder)

    class Fetched:
        kind, name, version = "model", "m", "2"
        path, digest = str(tmp_path / "drop" / order["path"]), order["sha256"]

    class Content:
        dropped = 0

        async def fetch(self, target: str, told: Any, source: str = "") -> Fetched:
            assert (target, source) == ("models/m-2.tar", "/media/stick")
            await told(0.5, "half of it")
            return Fetched()

        async def drop(self, fetched: Any) -> None:
            self.dropped += 1

        def foreign(self, source: str) -> str:
            return source

    content = Content()
    async with begun(tmp_path) as site:
        site.models._content = content
        args = {"target": "models/m-2.tar", "source": "/media/stick"}
        assert (await site.ordered("model.install", **args))["state"] == "succeeded"
        Fetched.version = "3"
        assert (
            "is m/2, expected m/3"
            in (await site.ordered("model.install", "c-2", **args))["message"]
        )
        Fetched.kind = "agent"
        assert (
            "no version of a model"
            in (await site.ordered("model.install", "c-3", **args))["message"]
        )
        assert content.dropped == 3
    assert files_of(tmp_path / "models/m/2") == files_of(folder)


async def test_a_worker_that_dies_once_may_be_forgiven(made: Path, tmp_path: Path) -> None:
    rules_ = config.Probation(probation_s=1.0, deaths_max=1)
    async with begun(tmp_path, probation=rules_) as site:
        order = site.ordered("model.install", **drop(tmp_path, put(made, 2)), activate=True)
        await until(lambda: "model_on_probation" in site.held, "it serves")
        pid = site.rig.domains.named("d").pid
        assert pid
        os.kill(pid, signal.SIGKILL)
        done = await order
        assert done["state"] == "succeeded", done
        trial = site.trials.of("m")
        assert trial
        assert trial.deaths == 1


async def test_without_a_probation_it_stays_once_its_golden_outputs_are_right(
    made: Path, tmp_path: Path
) -> None:
    async with begun(tmp_path, probation=WATCHED) as site:
        order = drop(tmp_path, golden(put(made, 2), 2.0))
        done = await site.ordered("model.install", **order, activate=True, probation_s=0.0)
        assert done["result"]["probation"] == "passed"
        assert done["result"]["seen"]["calls"] == RUNS


async def test_what_hears_is_renewed_like_any_other_model(tmp_path: Path) -> None:
    shipped, made = ROOT / "models/speech/1", tmp_path / "made/speech/2"
    shutil.copytree(shipped, tmp_path / "models/speech/1")
    made.mkdir(parents=True)
    shutil.copy(shipped / "model.onnx", made)
    said = (shipped / "model.yaml").read_text()
    (made / "model.yaml").write_text(said.replace("version: 1", "version: 2", 1))
    async with begun(tmp_path, domains={"d": rules("speech", engine="speech")}) as site:
        done = await site.ordered("model.install", **drop(tmp_path, made), activate=True)
        assert (done["state"], done["result"]["probation"]) == ("succeeded", "passed"), done
        assert site.rig.domains.version("speech") == 2


async def test_a_rollback_waits_for_no_version_that_is_only_being_proved(
    made: Path, tmp_path: Path
) -> None:
    first(tmp_path, 1, 2, 3)
    async with begun(tmp_path, probation=WATCHED) as site:
        await site.rig.domains.load("m", 1)
        await site.rig.domains.load("m", 2)
        order = site.ordered("model.activate", name="m", version=3)
        await until(lambda: site.probation.activating("m"), "it is proved")
        done = await site.ordered("model.rollback", "c-2", name="m")
        assert "is just being proved" in done["message"], done
        await until(lambda: "model_on_probation" in site.held, "it serves")
        done = await site.ordered("model.rollback", "c-3", name="m")
        assert done["result"] == {"name": "m", "version": 2, "former": 3}
        assert (await order)["state"] == "failed"
        assert await site.rig.version() == 2


async def test_only_what_is_signed_is_installed_where_signatures_are_asked_for(
    made: Path, tmp_path: Path
) -> None:
    folder = put(made, 2)
    plain = drop(tmp_path, folder, "plain.tar")
    public = sign(folder, tmp_path / "key")["key"]
    signed = drop(tmp_path, folder, "signed.tar")
    async with begun(tmp_path, signed_by=[public]) as site:
        done = await site.ordered("model.install", **plain)
        assert "there is no signature" in done["message"]
        assert site.there() == ["m", "m/1"]
        done = await site.ordered("model.install", "c-2", **signed)
        assert done["state"] == "succeeded", done
        assert (tmp_path / "models/m/2/model.sig").exists()


async def test_what_no_domain_has_any_more_can_be_removed(tmp_path: Path) -> None:
    for name in ("m", "other"):
        put(tmp_path / "models", 1, name)
    both = {"d": rules("m"), "e": rules("other")}
    async with begun(tmp_path, domains=both) as site:
        await site.rig.domains.load("other", 1)
        done = await site.ordered("model.remove", name="other", version=1)
        assert "is in use" in done["message"]
        await site.rig.domains.apply({"d": both["d"]})
        done = await site.ordered("model.remove", "c-2", name="other", version=1)
        assert done["state"] == "succeeded", done
        assert site.there() == ["m", "m/1", "other"]

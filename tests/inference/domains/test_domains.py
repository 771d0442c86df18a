"""Domains that come, change and go while others work."""

import asyncio
import os
import signal
from itertools import groupby
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from agent import config
from agent.errors import (
    BusyError,
    CallLost,
    ConfigError,
    ModelError,
    NotNow,
    NotThere,
)
from agent.inference.catalog import Catalog
from agent.inference.catalog.manifest import External
from agent.inference.domains.domains import _threads
from agent.inference.domains.instance import setup_of
from agent.inference.scheduler import REST_S
from bench.models import loop, not_numbers, tiny, write, write_triton
from tests.inference.catalog.repository import describe, install, linear
from tests.inference.domains.family import workers
from tests.inference.domains.rig import (
    DEADLINE_S,
    FAULTY,
    Answer,
    Rig,
    marked,
    put,
    rules,
    running,
    until,
)

LONG_TURNS = 2_000_000_000
SHORT_TURNS = 20_000


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A repository with the models m, other and third, and one that takes as long as one likes."""
    root = tmp_path / "models"
    for name in ("m", "other", "third"):
        put(root, 1, name)
    write(root, "turns", loop(16))
    return root


async def turns(rig: Rig, count: int) -> Answer:
    return await rig.ask("turns", [count], name="turns")


def children() -> set[int]:
    return set(workers())


async def test_a_domain_comes_and_goes_and_the_others_do_not_notice(root: Path) -> None:
    first = rules("m")
    async with running(root, d=first) as rig:
        pids = children()
        done = await rig.domains.apply({"d": first, "e": rules("other")})
        assert done == {"e": "added"}
        await rig.ready("e")
        assert await rig.version("other") == 1
        assert await rig.domains.apply({"d": first}) == {"e": "removed"}
        assert children() == pids
        assert rig.cells["e"].closed
        assert "e" in rig.told
        with pytest.raises(NotThere, match="no domain has the model 'other'"):
            await rig.ask("other")
        assert await rig.version() == 1
        assert await rig.domains.apply({"d": first}) == {}


async def test_what_runs_in_a_removed_domain_is_answered_and_what_waits_is_told(
    root: Path,
) -> None:
    first = rules("m")
    async with running(root, d=first, e=rules("turns")) as rig:
        calls = [asyncio.create_task(turns(rig, SHORT_TURNS)) for _ in range(20)]
        await until(lambda: rig.domains.named("e").instances[0].calls, "a call runs")
        assert await rig.domains.apply({"d": first}) == {"e": "removed"}
        found = await asyncio.gather(*calls, return_exceptions=True)
        errors = [one for one in found if isinstance(one, BaseException)]
        assert len(errors) < len(found)
        assert {type(one) for one in errors} <= {BusyError}
        assert all("it is being removed" in str(one) for one in errors)


async def test_a_hung_call_does_not_keep_its_domain_from_being_removed(root: Path) -> None:
    first = rules("m")
    async with running(root, d=first, e=rules("turns", call_timeout_s=0.3)) as rig:
        call = asyncio.create_task(turns(rig, LONG_TURNS))
        await until(lambda: rig.domains.named("e").instances[0].calls, "it runs")
        async with asyncio.timeout(DEADLINE_S):
            assert await rig.domains.apply({"d": first}) == {"e": "removed"}
        with pytest.raises((BusyError, CallLost)):
            await call


async def test_other_limits_hold_in_the_same_processes(root: Path) -> None:
    settings = rules("turns")
    async with running(root, d=settings) as rig:
        pid = rig.domains.named("d").pid
        changed = replace(
            settings, queue_max=3, call_timeout_s=0.3, class_="batch", memory_bytes_max=1 << 28
        )
        assert await rig.domains.apply({"d": changed}) == {"d": "changed"}
        assert rig.domains.named("d").pid == pid
        assert rig.cells["d"].asked == [settings, changed]
        with pytest.raises(CallLost, match=r"no answer within 0\.3 s"):
            await turns(rig, LONG_TURNS)


async def test_other_threads_or_numbers_come_with_other_processes(root: Path) -> None:
    settings = rules("m")
    async with running(root, d=settings) as rig:
        first = children()
        await rig.domains.apply({"d": (settings := replace(settings, threads=2))})
        domain = rig.domains.named("d")
        assert domain.pid not in first
        more = replace(settings, instances=config.Instances(min=2, max=3))
        second = domain.pid
        assert await rig.domains.apply({"d": more}) == {"d": "changed"}
        await until(lambda: len(domain.instances) == 2, "a second instance")
        assert second in {one.pid for one in domain.instances}
        await rig.domains.apply({"d": settings})
        await until(lambda: len(domain.instances) == 1, "it is one again")
        assert await rig.version() == 1


async def test_it_grows_by_the_numbers_that_hold_now(root: Path) -> None:
    settings = rules("turns")
    async with running(root, d=settings) as rig:
        grown = replace(settings, instances=config.Instances(min=1, max=2))
        await rig.domains.apply({"d": grown})
        calls = [asyncio.create_task(turns(rig, SHORT_TURNS * 4)) for _ in range(8)]
        await until(lambda: len(rig.domains.named("d").instances) == 2, "it has grown")
        for call in calls:
            call.cancel()
        await asyncio.wait(calls)


async def test_a_model_moves_from_one_domain_to_another(root: Path) -> None:
    async with running(root, d=rules("m", "other"), e=rules("third")) as rig:
        done = await rig.domains.apply({"d": rules("m"), "e": rules("third", "other")})
        assert done == {"d": "changed", "e": "changed"}
        assert [await rig.version(name) for name in ("m", "other", "third")] == [1, 1, 1]
        assert rig.domains.serving("other") is rig.domains.named("e")


async def test_a_change_that_cannot_be_leaves_all_as_it_was(root: Path) -> None:
    settings = {"d": rules("m"), "e": rules("other")}
    install(root, not_numbers(), "bad")
    async with running(root, **settings) as rig:
        pids, doomed = children(), {"e": rules("other"), "n": rules("third")}
        broken: dict[str, tuple[Any, str]] = {
            "m is in domain d already": (rules("m"), "n"),
            "no version of model 'none'": (rules("m", "none"), "d"),
            "d stays as it was: bad/1.* not finite": (rules("m", "bad"), "d"),
            "cannot be loaded: not ready within": (
                rules("m", threads=2, start_timeout_s=0.01),
                "d",
            ),
        }
        for said, (one, name) in broken.items():
            wanted = {**settings, **({} if name == "n" else doomed), name: one}
            with pytest.raises((ConfigError, ModelError), match=said):
                await rig.domains.apply(wanted)
            assert [domain.name for domain in rig.domains.all()] == ["d", "e"]
            assert rig.domains.named("d").settings == settings["d"]
            assert rig.cells["d"].asked[-1] == settings["d"]
        assert children() == pids
        assert await rig.version() == 1


async def test_a_model_is_unloaded_beside_another_over_a_restart_too(root: Path) -> None:
    settings = rules("m", "other")
    async with running(root, d=settings) as rig:
        asked = [asyncio.create_task(rig.ask("other")) for _ in range(200)]
        await asyncio.sleep(0)
        await rig.domains.unload("other")
        found = await asyncio.gather(*asked, return_exceptions=True)
        assert {type(one) for one in found} <= {Answer, NotThere}
        assert rig.domains.named("d").loaded("other") is None
        for _ in range(2):
            with pytest.raises(NotThere, match="model other is not loaded"):
                await rig.ask("other")
        with pytest.raises(NotThere, match="other is not loaded"):
            await rig.domains.unload("other")
        with pytest.raises(NotNow, match="the only model of domain d"):
            await rig.domains.unload("m")
        assert await rig.version("m") == 1
    async with running(root, d=settings) as rig:
        assert set(rig.domains.named("d").models) == {"m"}
        await rig.domains.apply({"d": replace(settings, threads=2)})
        assert set(rig.domains.named("d").models) == {"m"}
        await rig.domains.load("other", None)
        assert await rig.version("other") == 1
        assert await rig.version("m") == 1


async def test_the_model_that_the_agent_cannot_do_without_is_not_unloaded(root: Path) -> None:
    settings = rules("m", "other")
    async with running(root, d=settings) as rig:
        await rig.domains.unload("other")
    async with running(root, needed="other", d=settings) as rig:
        assert set(rig.domains.named("d").models) == {"m", "other"}
        with pytest.raises(NotNow, match="the agent hears with other"):
            await rig.domains.unload("other")
        assert await rig.version("other") == 1


async def test_calls_that_wait_for_a_model_that_is_unloaded_are_told(root: Path) -> None:
    async with running(root, d=rules("turns", "m")) as rig:
        long = asyncio.create_task(turns(rig, SHORT_TURNS))
        await until(lambda: rig.domains.named("d").instances[0].calls, "a call runs")
        unloading = asyncio.create_task(rig.domains.unload("m"))
        calls = list[asyncio.Task[Answer]]()
        while not unloading.done():
            calls += [asyncio.create_task(turns(rig, 2000)), asyncio.create_task(rig.ask())]
            await asyncio.sleep(0.01)
        found = await asyncio.wait_for(asyncio.gather(*calls, return_exceptions=True), DEADLINE_S)
        assert {type(one) for one in found} <= {Answer, NotThere, BusyError}
        assert isinstance(await long, Answer)


async def test_a_poisoned_newest_version_gives_way_to_the_one_before(root: Path) -> None:
    install(root, not_numbers(), version=4)
    put(root, 3, latency_ms_max=1e-6)
    put(root, 2)
    async with running(root) as rig:
        assert await rig.version() == 2
        (why,) = rig.domains.instead(rig.domains.named("d")).values()
        assert "m/4" in why
        assert "not finite" in why
        assert not rig.file.exists()  # nobody has chosen it
        with pytest.raises(ModelError, match=r"m/4.*not finite"):
            await rig.domains.load("m", None)
        await rig.domains.load("m", 1)
        assert rig.domains.instead(rig.domains.named("d")) == {}


async def test_a_version_that_ends_its_process_gives_way_too_once_it_did_so_twice(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(FAULTY))
    install(root, marked(linear(weight=2.0), "crash"), version=2)
    async with running(root) as rig:
        assert await rig.version() == 1
        domain = rig.domains.named("d")
        assert "SIGSEGV" in rig.domains.instead(domain)["m"]
        assert domain.restarts == 2


async def test_a_domain_without_a_version_that_may_serve_tries_until_one_may(root: Path) -> None:
    describe(root / "m/1", latency_ms_max=1e-6)
    async with running(root, wait=False) as rig:
        domain = rig.domains.named("d")
        await until(lambda: domain.restarts > 2, "it was tried again")
        assert "allows 1e-06" in domain.cause
        describe(root / "m/1")
        await rig.ready()
        assert await rig.version() == 1
        assert rig.domains.instead(domain) == {}


async def test_other_models_do_not_notice_a_domain_that_dies(root: Path) -> None:
    async with running(root, d=rules("m"), e=rules("other")) as rig:
        for _ in range(3):
            pid = rig.domains.named("e").pid
            assert pid is not None
            os.kill(pid, signal.SIGKILL)
            assert await rig.version("m") == 1
            await until(lambda pid=pid: rig.domains.named("e").pid not in (pid, None), "another")
            await rig.ready("e")
        assert await rig.version("other") == 1
        assert rig.domains.named("d").restarts == 0


async def test_what_a_triton_configuration_wishes_holds_where_nothing_else_is_said(
    root: Path,
) -> None:
    write_triton(root, "t", tiny(), batch_max=4)
    path = root / "t/config.pbtxt"
    path.write_text(
        path.read_text() + "dynamic_batching { max_queue_delay_microseconds: 7000 }\n"
        'parameters { key: "intra_op_thread_count" value { string_value: "3" } }\n'
    )
    for settings, wanted in (
        (rules("t"), (4, 0.007, 3)),
        (rules("t", batch_max=9, batch_delay_ms_max=1.0, threads=1), (9, 0.001, 1)),
    ):
        async with running(root, d=settings) as rig:
            domain = rig.domains.named("d")
            kind, setup = domain._kind(domain.models), domain._setup(domain.models)
            assert (kind.batch_max, kind.batch_delay_s, setup.threads) == wanted


async def test_what_serves_must_suit_what_its_domain_is_changed_to(root: Path) -> None:
    settings = rules("m")
    async with running(root, d=settings) as rig:
        for changed, said in (
            (replace(settings, engine="speech"), "for the engine onnx"),
            (replace(settings, devices=["tensorrt"]), "tensorrt"),
        ):
            with pytest.raises(ModelError, match=said):
                await rig.domains.apply({"d": changed})
            assert rig.domains.named("d").settings == settings
        assert await rig.version() == 1


async def test_a_model_of_a_domain_that_is_renamed_always_has_one(root: Path) -> None:
    async with running(root, d=rules("m"), e=rules("turns")) as rig:
        call = asyncio.create_task(turns(rig, LONG_TURNS))
        await until(lambda: rig.domains.named("e").instances[0].calls, "it runs")
        order = asyncio.create_task(rig.domains.apply({"d": rules("m"), "f": rules("turns")}))
        await until(lambda: not rig.domains.named("e").ready.is_set(), "it goes")
        there = rig.domains.serving("turns")
        call.cancel()
        assert there is rig.domains.named("f")
        assert await asyncio.wait_for(order, DEADLINE_S) == {"e": "removed", "f": "added"}
        await rig.ready("f")
        assert (await turns(rig, 1)).version == 1


async def test_the_engines_that_tensorrt_keeps_are_those_of_one_version(root: Path) -> None:
    put(root, 2)
    catalog, settings = Catalog(root), rules()
    loads = [setup_of([catalog.verified("m", v)], settings, 1).models[0] for v in (1, 2)]
    assert [one.sha256 for one in loads] == [catalog.verified("m", v).sha256 for v in (1, 2)]
    first = catalog.verified("m", 1)
    apart = [External("weights", digit * 64, 1) for digit in "ab"]
    models = [replace(first, manifest=replace(first.manifest, external=[one])) for one in apart]
    assert len({one.weights_sha256 for one in (first, *models)}) == 3


async def test_threads_are_no_more_than_the_processors_they_may_run_on(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: 12)
    for settings, wanted in (
        (rules(), 10),
        (rules(cpus="0-2,5"), 4),
        (rules(cpus="3"), 1),
        (rules(cpus="3", threads=7), 7),
    ):
        assert _threads(settings, {"d": settings}) == wanted


async def test_a_file_that_changes_under_a_version_is_not_run_as_that_version(root: Path) -> None:
    path = root / "m/1/model.onnx"
    verified = path.read_bytes()
    async with running(root, d=rules("m", quarantine_after=1000)) as rig:
        domain, pid = rig.domains.named("d"), rig.domains.named("d").pid
        assert pid is not None
        path.write_bytes(linear(weight=7.0).SerializeToString())
        os.kill(pid, signal.SIGKILL)
        await until(lambda: "changed after it was verified" in domain.cause, "it is refused")
        path.write_bytes(verified)
        await rig.ready()
        assert await rig.version() == 1


async def test_a_model_that_is_not_there_yet_is_waited_for_and_is_no_death(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root = tmp_path / "models"
    root.mkdir()
    settings = rules(quarantine_after=2, restart_s_max=0.02)
    async with running(root, wait=False, d=settings) as rig:
        domain = rig.domains.named("d")
        await until(lambda: rig.told.count("d") > 5, "it is tried again and again")
        assert not domain.quarantined
        assert domain.restarts == 0
        assert len([one for one in caplog.records if "next start" in one.message]) == 1
        put(root, 1)
        await rig.ready()
        assert await rig.version() == 1


async def test_a_domain_that_rests_takes_no_calls_and_answers_at_once_when_it_is_over(
    root: Path,
) -> None:
    async with running(root, d=rules("m"), e=rules("other")) as rig:
        await rig.ready("d")
        await rig.ready("e")
        pids = children()
        rig.domains.rest({"d": "it is too hot"})
        with pytest.raises(BusyError, match="domain d rests: it is too hot") as refused:
            await rig.ask("m")
        assert refused.value.retry_s == REST_S
        assert await rig.version("other") == 1
        rig.domains.rest({})
        assert await rig.version() == 1
        assert children() == pids


async def test_why_a_domain_stays_down_is_said_when_that_changes(root: Path) -> None:
    """First it was killed; then what it is to load is not there any more."""
    said = list[str]()
    async with running(root, d=rules("m", quarantine_after=1000)) as rig:
        await rig.ready("d")
        domain = rig.domains.named("d")
        rig.on_change = lambda one: said.extend([one.cause] if one.cause else [])
        (root / "m/1/model.onnx").unlink()
        assert domain.pid
        os.kill(domain.pid, signal.SIGKILL)
        await until(lambda: said and "model.onnx" in said[-1], "the present cause is said")
        assert "SIGKILL" in said[0], said
        assert len(said) == len([one for one, _ in groupby(said)]), "and nothing twice"


async def test_a_fallback_that_rests_is_not_asked(root: Path) -> None:
    put(root, 2, "m", fallback="other")
    async with running(root, d=rules("m"), e=rules("other")) as rig:
        await rig.ready("d")
        await rig.ready("e")
        model = rig.domains.named("d").models["m"]
        rig.scheduler.breaker(model).reopen(rig.clock.monotonic(), 60.0)
        assert (await rig.ask("m")).label.startswith("other/1@")
        rig.domains.rest({"e": "its battery is below 40%"})
        with pytest.raises(BusyError, match="circuit breaker is open"):
            await rig.ask("m")

"""What the parts say of themselves, as a store on a disk that hangs, and what remedies do."""

import asyncio
import errno
import os
import signal
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path

import pytest

from agent import config_file
from agent.app import App
from agent.clock import Clock
from agent.compose import moving
from agent.compose.moving import AGENT, DOMAIN, INSTANCE, REBOOT, RESET, Turns, begin_anew, memory
from agent.config import Store as Settings
from agent.errors import HoldfastError
from agent.health.watchdog import policy
from agent.health.watchdog.policy import Reading, Rule, Standing
from agent.health.watchdog.watchdog import TICK_S, Part
from agent.records import RecordType
from agent.store import database
from agent.store.intake import New
from agent.store.store import Store
from bench.models import loop, write
from tests.host.grouped import Group, needs_group
from tests.inference.domains.bed import until, whole, workers
from tests.inference.domains.rig import rules, running
from tests.inference.domains.test_lease_real import Pair
from tests.inference.domains.test_lease_real import pair as pair
from tests.inference.domains.test_twinned import CPU, CUDA, Played, one
from tests.inference.domains.test_twinned import gpu as gpu
from tests.outside import DEADLINE_S, program
from tests.store.faults.disk import Disk, needs_fuse
from tests.store.test_removed import looked

SOME = [New(RecordType.SEGMENT, b"{}")]


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    needs_fuse()
    with Disk(tmp_path / "disk") as made:
        yield made


def opened(disk: Disk) -> Store:
    return Store(Settings(path=str(disk.mount / "s.db")), Clock())


async def reached(question: Callable[[], object]) -> None:
    async with asyncio.timeout(DEADLINE_S):
        while not question():
            await asyncio.sleep(0.01)


async def test_each_commit_is_a_step_and_not_only_what_was_asked(disk: Disk) -> None:
    """On a slow disk whoever asks waits for all commits before him: each of those is progress."""
    async with opened(disk) as store:
        turns = Turns(store)
        first = turns.read().done
        for _ in range(3):
            await store.intake.append("a", SOME)
        assert turns.read().done - first >= 3, "it was asked once"


async def test_a_store_that_hangs_stands_until_it_goes_on(disk: Disk) -> None:
    async with opened(disk) as store:
        turns = Turns(store)
        disk.rule("s.db-wal", ["fsync"], delay_s=3600.0)
        append = asyncio.create_task(store.intake.append("a", SOME))
        await reached(disk.hits)
        readings = [turns.read() for _ in range(4)]
        assert turns.stands
        assert len(set(readings)) == 1
        assert readings[0].owed
        disk.clear()
        await append
        await reached(lambda: (turns.read(), not turns.stands)[1])


async def test_a_file_that_is_written_back_for_long_is_a_store_that_moves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database, "TIDY_S", 0.0)
    path = tmp_path / "s.db"
    async with Store(Settings(path=str(path)), Clock()) as store:
        blob = bytes(1 << 20)
        for _ in range(24):
            await store.intake.append("a", [New(RecordType.SEGMENT, b"{}", blob)])
        turns, commits = Turns(store), store.commits.count
        before = turns.read().done
        path.unlink()
        await looked(store)
        assert path.exists()
        assert turns.read().done - before >= 6 + store.commits.count - commits


def test_a_process_without_descriptors_is_not_taken_for_one_that_leaks(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refused() -> int:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr("agent.compose.moving.own_bytes", refused)
    assert memory(1) == Reading(0, owed=False, why="nobody knows: Too many open files")


async def test_what_cannot_be_counted_is_not_reset(tmp_path: Path) -> None:
    """The disk fails after the start, so that the remedy's own mark is what cannot be written."""
    config, pulled = tmp_path / "config.yaml", tmp_path / "pulled"
    command = f"[{program('touch', 'coreutils')}, {pulled}]"
    config.write_text(
        f"link: {{ack_from: broker}}\nstore: {{path: {tmp_path}/store/holdfast.db}}\n"
        f"watchdog: {{reset_command: {command}, device: /dev/none}}\n"
    )
    app = App(config_file.load(config), config)
    app.starts.begin()
    book = tmp_path / "store" / "starts.json"
    parts = {part.name: part for part in app.watchdog.moving.all()}
    book.unlink()
    book.mkdir()
    for remedy in ("reboot", "reset"):
        with pytest.raises(HoldfastError, match=r"not reset: .*starts.json cannot be written"):
            await parts["store"].remedies[remedy]("the watchdog saw no progress of store")
    assert not pulled.exists()
    book.rmdir()
    with pytest.raises(HoldfastError, match="the machine is still there"):
        await parts["store"].remedies["reset"]("the watchdog saw no progress of store")
    assert pulled.exists(), "a disk that writes again"


async def test_a_domain_that_begins_anew_leaves_its_accelerator_until_that_is_proved(
    tmp_path: Path, gpu: Played
) -> None:
    async with one(tmp_path, probe_s_min=60.0, probe_s_max=60.0) as (rig, d):
        assert (await rig.ask()).ep == CUDA
        before = d.pid
        said = await begin_anew(d, "the watchdog saw no progress of domain d for 24 s")
        assert said == "all processes of the domain killed, m on the CPU meanwhile"
        await until(lambda: before not in workers(), "its process has ended")
        await until(d.ready.is_set, "it is ready")
        assert (await rig.ask()).ep == CPU
        assert d.falls["m"].fault == "hang"
        d.restart()  # somebody has seen to it
        await until(lambda: not d.falls, "it is on the GPU")
        assert (await rig.ask()).ep == CUDA


def part(folder: Path, name: str, link: str = "") -> Part:
    """One of an agent's that was built, and not begun."""
    config = folder / "config.yaml"
    source = f"{{kind: folder, name: inbox, path: {folder}}}"
    config.write_text(
        f"link: {{ack_from: broker{link}}}\nstore: {{path: {folder}/store/holdfast.db}}\n"
        f"audio: {{sources: [{source}]}}\n"
    )
    parts = App(config_file.load(config), config).watchdog.moving.all()
    return next(one for one in parts if one.name == name)


def ladder(part: Part) -> list[str]:
    steps = [step.remedy for step in part.rule.steps]
    assert part.remedies.keys() == set(steps)
    return steps


@pytest.mark.parametrize(
    ("link", "bound_s", "dead_s"),
    [
        ("", 20.0, 24.0),
        (", connect_timeout_s: 60", 120.0, 124.0),
        (", batch_s: 100", 102.0, 106.0),
    ],
)
def test_for_the_uplink_no_machine_is_reset_and_its_rule_is_above_its_own_bound(
    tmp_path: Path, link: str, bound_s: float, dead_s: float
) -> None:
    uplink = part(tmp_path, "uplink", link)
    assert ladder(uplink) == ["part", "agent"]
    assert uplink.rule.spared, "nor left to starve, so that somebody else resets it"
    assert not any(step.resets for step in uplink.rule.steps)
    assert (uplink.rule.late_s, uplink.rule.dead_s) == (bound_s, dead_s)
    assert not uplink.read().owed, "it has not begun"


def test_a_source_begins_anew_before_its_domain_does(tmp_path: Path) -> None:
    source = part(tmp_path, "source inbox")
    assert ladder(source) == ["part", "domain", "agent", "reboot", "reset"]
    assert not source.rule.spared


def runs(pid: int) -> bool:
    state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    return state not in "Tt"


async def test_time_without_a_processor_is_not_held_against_a_domain(tmp_path: Path) -> None:
    needs_group("cpu")
    write(tmp_path / "models", "loop", loop())
    async with running(tmp_path / "models", d=rules("loop", call_timeout_s=600.0)) as rig:
        d = rig.domains.named("d")
        assert moving.calls(d) == (0, False, "no call waits", 0.0)
        d.submit(whole("loop", "turns", 1 << 40))
        await until(lambda: d.busy, "it computes")
        assert d.pid is not None
        group = Group("cpu", d.pid)
        try:
            group.write("cpu.cfs_period_us", 100_000)
            group.write("cpu.cfs_quota_us", 1000)  # a hundredth
            group.enter()
            await until(lambda: moving.calls(d).held_up_s > 0.5, "it wants a processor")
            assert moving.calls(d).owed
            os.kill(d.pid, signal.SIGSTOP)
            await until(lambda: not runs(d.pid or 0), "it wants nothing any more")
            before = moving.calls(d)
            await asyncio.sleep(0.1)  # which may be longer, and is not counted
            assert moving.calls(d) == before
        finally:
            os.kill(d.pid, signal.SIGKILL)
            group.leave()


async def test_who_waits_for_the_gpu_of_another_owes_nothing(pair: Pair) -> None:
    await asyncio.gather(pair.ask("llm"), pair.ask("image"))
    llm, image = pair.domains["llm"], pair.domains["image"]
    held, waits = pair.work("llm", 1 << 40), pair.work("image")
    llm.submit(held)
    await until(lambda: llm.busy, "it has its turn")
    os.kill(llm.pid or 0, signal.SIGSTOP)
    image.submit(waits)
    await until(lambda: image.waiting, "the other one waits")
    assert moving.calls(image) == (1, False, "another domain has the GPU", 0.0)
    assert moving.calls(llm).owed, "it is who stands still"
    llm.cancel(held)
    assert llm.kill_busy("it stands still") == 1
    async with asyncio.timeout(DEADLINE_S):
        await waits.done
    assert moving.calls(image)[:3] == (2, False, "no call waits")


LAST = (AGENT, REBOOT, RESET)
CLIMBED = ["instance"] * 3 + ["domain"] * 2 + ["agent"] * 2 + ["reboot"] + ["reset"] * 2


def climbed(rule: Rule) -> list[tuple[float, str]]:
    """What is done, and when, for a part that nothing helps; each beginning takes no time."""
    standing, now_s, found = Standing(0, 0.0), 0.0, list[tuple[float, str]]()
    while not policy.exhausted(rule, standing, now_s) and len(found) <= len(CLIMBED):
        now_s += TICK_S
        standing = policy.seen(standing, Reading(0, owed=True), now_s)
        if step := policy.due(rule, standing, now_s):
            standing = policy.took(standing, step, now_s)
            found.append((now_s, step.remedy))
            if step in rule.steps[-3:]:  # the agent begins anew, and remembers
                standing = Standing(0, now_s, taken=standing.taken)
    return found


@pytest.mark.parametrize("call_timeout_s", [10.0, 30.0, 600.0])
def test_a_domain_that_nothing_helps_climbs_the_whole_ladder_once(call_timeout_s: float) -> None:
    """So the machine is rebooted only after the agent was started anew, twice."""
    rule = moving.rule_of(call_timeout_s, INSTANCE, DOMAIN, *LAST)
    found = climbed(rule)
    assert [remedy for _, remedy in found] == CLIMBED
    times = [0.0, *(at_s for at_s, _ in found)]
    apart = [later - first for first, later in pairwise(times)]
    assert min(apart) >= rule.dead_s > call_timeout_s, "what is begun anew has its time"
    if call_timeout_s == 10.0:  # docs/watchdog.md
        assert [at_s for at_s, _ in found] == [24, 48, 72, 96, 120, 144, 174, 204, 324, 354]

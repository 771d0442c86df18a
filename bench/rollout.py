"""A rollout to 500 simulated devices, 5 % of them bad, through a real Mosquitto.

The bad ones fail and take it back by themselves: their result says so. It goes in steps of 1, 10,
50 and 100 %, 50 devices at a time, and pauses when more than 3 % of those that ended have failed,
of 20 at least. Then it is resumed with all failures allowed, those that failed get the way back
too, and the report must name exactly the bad devices. The controller is `holdfast-fleet control` on
SQLite, with its commits on the disk; all is on 127.0.0.1 and on the same cores. Where the report
names others than the bad ones, or a device has two effects, this ends with an error.

given_vs_all         devices that had it when it paused, over all; smaller is better
overshoot_vs_flight  devices that got it after the threshold was passed, over those that may be in
                     flight; 1 at most
named_vs_bad         devices that the report names, over the bad ones: 1
effects_vs_commands  1: each device had one effect of each command

Times to result are from when the rollout gave the command to a device to the commit of its last
word. --full takes 2,000 devices.
"""

import asyncio
import random
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import uvloop

from bench import report
from bench.commands import latencies
from fleet.control import base, book, plan, rollouts, standing, waiting
from fleet.control.orders import Wish, made
from fleet.control.plan import Plan
from fleet.control.reports import report as report_of
from fleet.store.database import Database
from tests.fleet.control.rig import ControlProcess
from tests.outside import Mosquitto, running
from tests.sim.commanded import Commanded, Crew, failing, good

DEVICES, BAD_SHARE, SEED = 500, 0.05, 1
IN_FLIGHT = 50
FAILURES_MAX, SAMPLES_MIN = 0.03, 20
WORK_S = 0.05  # what an update takes, here
FULL = 4  # --full: so many times as many devices
DEADLINE_S = 300.0
ID = "r-1"


async def _started(database: Database, names: Sequence[str]) -> None:
    members = plan.ordered(names, str(SEED))
    told = rollouts.checked(
        Plan(
            name="model.install",
            bounds=plan.shares("1,10,50,100", len(members)),
            in_flight_max=IN_FLIGHT,
            failures_max=FAILURES_MAX,
            samples_min=SAMPLES_MIN,
            seed=str(SEED),
            back="model.rollback",
            back_on="failed",
        )
    )
    way, back = (
        made(Wish(name=name, id=id_, expires_s=3600), members, time.time())
        for name, id_ in ((told.name, ID), (told.back, standing.back_id(ID)))
    )
    async with database.begin() as transaction:
        await rollouts.start(transaction, ID, told, way, back, time.time_ns() // 1000)


async def _taken_back(database: Database, bad: set[str]) -> None:
    """Each that failed has had the way back."""
    found = await waiting.ended(database, sorted(bad), [standing.back_id(ID)], DEADLINE_S)
    assert all(one.ended_us for one in found), "not all were sent the way back"


async def _kept(database: Database) -> list[book.Kept]:
    async with database.begin() as transaction:
        return await book.found(transaction, ids=[ID], most=plan.MEMBERS_MAX)


def _given(found: Sequence[book.Kept]) -> list[book.Kept]:
    return [one for one in found if one.state not in ("planned", "waiting")]


def _after_the_threshold(found: Sequence[book.Kept]) -> int:
    """How many got it after so many had failed that it should stop."""
    ended = sorted((one for one in found if one.ended_us), key=lambda one: one.ended_us or 0)
    bad, at_us = 0, 0
    for count, one in enumerate(ended, 1):
        bad += one.state == "failed"
        if count >= SAMPLES_MIN and bad > FAILURES_MAX * count:
            at_us = one.ended_us or 0
            break
    return sum((one.given_us or 0) > at_us for one in _given(found))


async def _paused(database: Database, bad: set[str]) -> dict[str, Any]:
    """It stops by itself, and names those that failed by then, and nobody else."""
    at = time.monotonic()
    told = await waiting.over(database, ID, DEADLINE_S)
    assert told.state == "paused", f"it is {told.state}"
    took_s = time.monotonic() - at
    found = await _kept(database)
    while any(one.state in ("sent", "accepted", "running") for one in found):  # they go on
        await asyncio.sleep(0.05)
        found = await _kept(database)
    async with database.begin() as transaction:
        told = await report_of(transaction, ID)
    given = {one.device for one in _given(found)}
    assert {one.device for one in told.failed} == given & bad, "the report names others"
    assert all("taken back" in one.message for one in told.failed)
    return {
        "seconds": took_s,
        "given": len(given),
        "failed": len(told.failed),
        "overshoot": _after_the_threshold(found),
    }


async def _measured(folder: Path, count: int) -> report.Report:
    names = [f"device-{i}" for i in range(count)]
    bad = set(random.Random(SEED).sample(names, int(count * BAD_SHARE)))
    broker, url = Mosquitto(folder), f"sqlite:///{folder}/fleet.db"
    devices = [
        Commanded(name, broker.url, failing if name in bad else good, WORK_S) for name in names
    ]
    with running(broker, ControlProcess(folder, broker.url, url)):
        async with base.open(url) as database, Crew(devices) as crew:
            await _started(database, names)
            paused = await _paused(database, bad)
            async with database.begin() as transaction:
                await rollouts.resume(transaction, ID, time.time_ns() // 1000, 1.0)
            at = time.monotonic()
            told = await waiting.over(database, ID, DEADLINE_S)
            rest_s = time.monotonic() - at
            assert told.state == "finished", f"it is {told.state}: {told.cause}"
            await _taken_back(database, bad)
            found, effects = await _kept(database), crew.effects
    named = {one.device for one in told.failed}
    assert named == bad, f"named, but not bad: {named - bad}; bad, but not named: {bad - named}"
    assert set(effects.values()) == {1}, "an effect was had twice"
    assert len(effects) == count + len(bad)
    ratios = {
        "given_vs_all": report.Ratio.once(paused["given"] / count, 0.5),
        "overshoot_vs_flight": report.Ratio.once(paused["overshoot"] / IN_FLIGHT, 1.0),
        "named_vs_bad": report.Ratio.once(len(named) / len(bad), 1.0),
        "effects_vs_commands": report.Ratio.once(sum(effects.values()) / len(effects), 1.0),
    }
    figures = {
        "to_the_pause_s": paused["seconds"],
        "given_at_the_pause": paused["given"],
        "failed_at_the_pause": paused["failed"],
        "to_the_end_s": rest_s,
        "commands_per_s": (count - paused["given"]) / rest_s,
        **{f"to_result_{key}": value for key, value in latencies(found).items()},
    }
    return report.Report.of("rollout", ratios, figures)


def measure(folder: Path, *, full: bool) -> report.Report:
    """All figures."""
    return uvloop.run(_measured(folder, DEVICES * (FULL if full else 1)))


def main() -> None:
    asked = report.options(__doc__).parse_args()
    Path("var").mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="bench-rollout-", dir="var") as folder:
        measure(Path(folder).resolve(), full=asked.full).show(as_json=asked.json)


if __name__ == "__main__":
    main()

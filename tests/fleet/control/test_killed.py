"""kill -9 of the controller in the middle of a rollout: it goes on, and nothing is done twice.

HOLDFAST_LONG=1 kills it more often; HOLDFAST_SEED=N at other moments.
"""

import asyncio
import random
from pathlib import Path

from fleet.control.reports import report
from tests.fleet.control.rig import ControlProcess, asked, document, fleet, happens
from tests.fleet.test_model import LONG, SEED
from tests.outside import Mosquitto, running
from tests.sim.commanded import Commanded, Crew, failing, good

DEVICES, BAD = 60, 3
KILLS = 10 if LONG else 2


async def test_a_killed_controller_goes_on_with_its_rollout(tmp_path: Path, url: str) -> None:
    chance = random.Random(f"{SEED}.rollout")
    broker = Mosquitto(tmp_path)
    control = ControlProcess(tmp_path, broker.url, url, "--lease-s", "0.5", "--resend-s", "1")
    names = [f"d{i:02}" for i in range(DEVICES)]
    bad = set(chance.sample(names, BAD))
    made = [
        Commanded(name, broker.url, failing if name in bad else good, work_s=0.05) for name in names
    ]
    with running(broker, control):
        async with Crew(made) as crew:
            steps = ("--steps", "10,50,100", "--in-flight", "4", "--pause-at", "1", "--id", "r-1")
            back = ("--rollback", "model.rollback")
            where = ("--database", url)
            listed = tmp_path / "devices"
            listed.write_text("\n".join(names))
            begun = await fleet(
                "rollout", "start", "model.install", "--list", str(listed), *steps, *back, *where
            )
            assert begun.returncode == 0, begun.stderr
            for kill in range(KILLS):
                at = (kill + 1) * DEVICES // (KILLS + 1)

                async def so_many(at: int = at) -> bool:
                    return sum(bool(one.effects["r-1"]) for one in crew.devices) >= at

                await happens(so_many, f"{at} devices have it")
                await asyncio.sleep(chance.uniform(0, 0.05))
                control.kill()
                told = await asked(url, lambda one: report(one, "r-1"))
                assert told.state == "running"
                control.begin()

            async def over() -> bool:
                return (await asked(url, lambda one: report(one, "r-1"))).state == "finished"

            await happens(over, "the rollout ends")

            async def taken_back() -> bool:
                told = await asked(url, lambda one: report(one, "r-1"))
                return all(one.back == "succeeded" or one.back == "failed" for one in told.failed)

            await happens(taken_back, "those that failed got the way back")
            told = await document("rollout", "show", "r-1", *where)
            assert {one["device"] for one in told["failed"]} == bad
            assert (told["counts"]["good"], told["counts"]["bad"]) == (DEVICES - BAD, BAD)
            wanted = {(name, "r-1"): 1 for name in names}
            assert crew.effects == {**wanted, **{(name, "r-1.back"): 1 for name in bad}}

"""How the calls of a chunk are made: by the real scheduler, in a real process."""

from pathlib import Path

import msgspec
import numpy as np
import pytest

from agent.errors import ModelError, NotNow
from agent.inference.domains.work import Result
from agent.jobs.calls import CALL_ROWS, Calls, answered, joined
from agent.jobs.infer import Answer, Request
from bench import models
from tests.inference.house import House, running
from tests.jobs.desk import tensor

ROWS = 2 * CALL_ROWS
GIVEN = np.arange(4.0 * ROWS, dtype=np.float32).reshape(ROWS, 4)


async def asked(house: House, *, again: bool = False) -> Answer:
    calls = Calls(house.scheduler, house)
    return await calls.infer(Request("m", "batch", [tensor("x", GIVEN)], [], again))


def made(house: House) -> int:
    return house.domain.figures.models["m"].outcomes["ok"]


async def test_calls_are_as_short_as_their_domain_asks(tmp_path: Path) -> None:
    """A process that is at one for longer than call_timeout_s is taken for hung, and killed."""
    models.write(tmp_path, "m", models.identity())
    async with running(tmp_path, "m", call_timeout_s=10.0) as house:
        answer = await asked(house)
        assert made(house) == 2
        assert answer.outputs[0].data.tobytes() == GIVEN.tobytes()
        costs = house.domain._dispatch.batches.costs["m"]
        for _ in range(100):  # as on a slow board
            costs.measured(1.6, 1, 1)
        assert (await asked(house)).outputs[0].data.tobytes() == GIVEN.tobytes()
        assert made(house) > 2 + 2


async def test_what_must_not_be_made_twice_is_not_though_it_is_a_job(tmp_path: Path) -> None:
    models.write(tmp_path, "m", models.identity(), idempotent=False)
    async with running(tmp_path, "m") as house:
        answer = await asked(house)
        assert answer.outputs[0].data.tobytes() == GIVEN.tobytes()
        assert made(house) == 1, "a part of it cannot be lost alone"
        with pytest.raises(ModelError, match="must not be made twice"):
            await asked(house, again=True)
        assert made(house) == 1


@pytest.mark.parametrize("head", [b"\xc1", b"\xc0", b"\x81\xa7outputs\x91\x91\xa2\xff\xff"])
def test_an_answer_that_makes_no_sense_fails_the_job_alone(head: bytes) -> None:
    with pytest.raises(ModelError, match="m/1@0: its process gave an answer that makes no sense"):
        answered(Result(msgspec.Raw(head), memoryview(b""), "m/1@0", "CPU"))


def test_what_two_versions_answered_is_no_chunk() -> None:
    one, other, cuda = (
        Answer([tensor("y", GIVEN)], model, ep)
        for model, ep in (("m/1@0", "CPU"), ("m/2@1", "CPU"), ("m/1@0", "CUDA"))
    )
    with pytest.raises(NotNow, match="m/2@1 took the place of m/1@0 within a chunk"):
        joined([one, other])
    whole = joined([cuda, one])
    assert (whole.model, whole.ep) == ("m/1@0", "CPU, CUDA")

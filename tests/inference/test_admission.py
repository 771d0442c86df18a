"""How a version is tried before it serves."""

from pathlib import Path

import msgspec

from agent.inference import wire
from agent.inference.admission import RUNS, Admission
from agent.inference.catalog import Catalog
from agent.inference.domains.work import Result, Work
from bench import models

TENSOR = wire.Tensor("x", "FP32", [-1, 4])
RUN_S = 40.0


class Clock:
    now_s = 1000.0

    def monotonic(self) -> float:
        return self.now_s


async def test_a_slow_board_has_the_time_that_its_domain_gives_a_call(tmp_path: Path) -> None:
    """How long one may take is said by call_timeout_s, and by latency_ms_max; by nothing else."""
    models.write(tmp_path, "m", models.identity())
    clock, asked = Clock(), list[Work]()
    head = msgspec.msgpack.encode(wire.Inferred([wire.Tensor("y", "FP32", [1, 4], 16)]))

    async def ask(work: Work) -> Result:
        clock.now_s += RUN_S
        assert clock.now_s < work.deadline_s, "it would be given up"
        asked.append(work)
        return Result(msgspec.Raw(head), memoryview(bytes(16)), "m/1@0", "CPU")

    loaded = wire.Loaded("CPU", 0.0, inputs=[TENSOR], outputs=[wire.Tensor("y", "FP32", [-1, 4])])
    await Admission(clock).prove(Catalog(tmp_path).newest("m"), loaded, ask)  # type: ignore
    assert len(asked) == RUNS

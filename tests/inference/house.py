"""A domain of test models in real processes, and a scheduler before it."""

import asyncio
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper

from agent import config
from agent.clock import Clock
from agent.errors import HoldfastError
from agent.inference.admission import Admission
from agent.inference.cache import Cache
from agent.inference.catalog import Catalog, Model
from agent.inference.domains.domain import Domain, Parts
from agent.inference.domains.zygote import Zygote
from agent.inference.scheduler import Scheduler
from agent.inference.sequences import Sequences
from bench import models
from bench.unconfined import Unconfined

DEADLINE_S = 90.0
STATE = {"state": [{"input": "state", "output": "state_out"}]}


def write_all(root: Path) -> None:
    """The models of bench/models.py that tests ask."""
    models.write(root, "tiny", models.tiny())
    models.write(root, "loop", models.loop())
    models.write(root, "accumulator", models.accumulator(), **STATE)
    models.write(root, "sure", models.identity(size=1), deterministic=True)
    models.write(root, "picks", picks())
    models.write(root, "replaced", picks(), fallback="same")
    models.write(root, "same", models.identity(TensorProto.INT64, 1))
    models.write(root, "tiny4", models.identity())


def picks() -> onnx.ModelProto:
    """Errs on what is not one of 0, 1, 2, 3."""
    network = models.Network(1)
    network.node("Gather", [network.constant(np.arange(4.0, dtype=np.float32)), "x"], "y")
    ends = [
        helper.make_tensor_value_info("x", TensorProto.INT64, ["n", 1]),
        helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 1]),
    ]
    return network.model("picks", ends[:1], ends[1:])


class House:
    """The domain and its scheduler."""

    def __init__(self, root: Path, names: Iterable[str], **rules: Any) -> None:
        self.clock = Clock()
        catalog = Catalog(root)
        settings = config.Domain(models=list(names), threads=1, restart_s_min=0.01, **rules)

        def choose() -> dict[str, Model]:
            return {name: catalog.verified(name) for name in settings.models}

        self.zygote = Zygote()
        ways = (self.clock, lambda _: None, Admission(self.clock).prove, Unconfined(), self.zygote)
        self.domain = Domain("d", settings, Parts(choose, *ways, 1))
        self.cache = Cache(1 << 20)
        self.sequences = Sequences(self.clock)
        self.scheduler = Scheduler(self, self.cache, self.sequences, self.clock)

    def serving(self, model: str) -> Domain | None:
        return self.domain if model in self.domain.settings.models else None

    @property
    def pid(self) -> int:
        assert self.domain.pid is not None
        return self.domain.pid


@asynccontextmanager
async def running(root: Path, *names: str, **rules: Any) -> AsyncIterator[House]:
    """Ready."""
    house = House(root, names, **rules)
    async with house.zygote, house.domain:
        task = asyncio.create_task(house.domain.run())
        try:
            async with asyncio.timeout(DEADLINE_S):
                await house.domain.ready.wait()
            yield house
        finally:
            task.cancel()
            await asyncio.wait([task])


async def error_of(answer: Any) -> HoldfastError:
    """What a call ends with, which is no answer."""
    async with asyncio.timeout(DEADLINE_S):
        try:
            found = await answer
        except HoldfastError as error:
            return error
    raise AssertionError(f"there was an answer: {found}")

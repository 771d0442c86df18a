"""Domains over a repository of small models, each of which tells its version by its answers."""

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np
import onnx

from agent import config
from agent.clock import Clock
from agent.inference import wire
from agent.inference.admission import Admission, arrays
from agent.inference.cache import Cache
from agent.inference.catalog import Catalog
from agent.inference.domains.choices import Choices
from agent.inference.domains.domain import Domain
from agent.inference.domains.hold import Hold
from agent.inference.domains.renewed import Renewed
from agent.inference.domains.zygote import Zygote
from agent.inference.scheduler import Request, Scheduler
from agent.inference.sequences import Sequences
from bench.unconfined import Unconfined
from tests.inference.catalog.repository import install, linear
from tests.inference.domains.bed import until as until

DEADLINE_S = 90.0
FAULTY = Path(__file__).parent / "faulty"  # on PYTHONPATH, for `marked` models


class Free(Unconfined):
    """Limits that hold nothing; they remember what was asked of them."""

    def __init__(self, settings: config.Domain) -> None:
        self.asked = [settings]
        self.closed = False

    async def change(self, settings: config.Domain) -> None:
        self.asked.append(settings)

    async def close(self) -> None:
        self.closed = True


class Answer(NamedTuple):
    label: str
    values: np.ndarray
    ep: str

    @property
    def version(self) -> int:
        """As it is stamped."""
        return int(self.label.split("/")[1].split("@")[0])


def rules(*models: str, **more: Any) -> config.Domain:
    """Settings of a domain; what goes wrong is tried again soon."""
    return config.Domain(models=list(models or ("m",)), **{"restart_s_min": 0.01, **more})


def put(root: Path, version: int, name: str = "m", **said: Any) -> Path:
    """A version that multiplies by its own number. Its folder."""
    return install(root, linear(weight=float(version)), name, version, **said)


def marked(model: onnx.ModelProto, fault: str) -> onnx.ModelProto:
    """It goes wrong as faulty/sitecustomize.py says."""
    model.metadata_props.add(key="fault", value=fault)
    return model


class Rig:
    """What there is, and a client."""

    def __init__(
        self, root: Path, settings: Mapping[str, config.Domain], needed: str | None = None
    ) -> None:
        self.root = root
        self.clock = Clock()
        self.told: list[str] = []  # names of domains that changed
        self.on_change: Callable[[Domain], None] = lambda _: None
        self.cells: dict[str, Free] = {}
        self.file = root.parent / "models.json"
        self.zygote, self.hold = Zygote(), Hold()
        self.domains = Renewed(
            settings,
            Catalog(root),
            Choices(self.file),
            self.clock,
            self._changed,
            Admission(self.clock).prove,
            self._confine,
            self.zygote,
            needed=needed,
            hold=self.hold,
        )
        parts = (Cache(1 << 20), Sequences(self.clock), self.clock)
        self.scheduler = Scheduler(self.domains, *parts)

    def _changed(self, domain: Domain) -> None:
        self.told.append(domain.name)
        self.on_change(domain)

    def _confine(self, name: str, settings: config.Domain) -> Free:
        self.cells[name] = Free(settings)
        return self.cells[name]

    async def ask(
        self, model: str = "m", values: Any = (1.0,) * 4, name: str = "x", **more: Any
    ) -> Answer:
        """One row, or several, and what came of it."""
        given = np.asarray(values)
        given = given.astype({"f": np.float32}.get(given.dtype.kind, given.dtype))
        alone = name == "x" and given.ndim == 1
        shape = [1, *given.shape] if alone else list(given.shape)
        dtype = {"float32": "FP32", "int64": "INT64"}[given.dtype.name]
        body = given.tobytes()
        head = wire.Infer([wire.Tensor(name, dtype, shape, len(body))])
        raw = msgspec.Raw(msgspec.msgpack.encode(head))
        result = await self.scheduler.infer(Request(model, raw, [body], len(body), **more))
        values = next(iter(arrays(result).values())).ravel()
        return Answer(result.model, values, result.ep)

    async def version(self, model: str = "m") -> int:
        """Which version answers; the answer itself says the same."""
        answer = await self.ask(model)
        assert answer.values[0] == answer.version
        return answer.version

    async def ready(self, *names: str) -> None:
        """Until these domains are; all, without names."""
        async with asyncio.timeout(DEADLINE_S):
            for domain in self.domains.all():
                if not names or domain.name in names:
                    await domain.ready.wait()


@asynccontextmanager
async def running(
    root: Path,
    wait: bool = True,
    needed: str | None = None,
    held: str = "",
    **settings: config.Domain,
) -> AsyncIterator[Rig]:
    """Domains with their loops; `d` with the model `m` unless others are named.

    `held`: none of them starts, for this reason.
    """
    rig = Rig(root, settings or {"d": rules()}, needed)
    if held:
        rig.hold.set(held, "lift it")
    async with rig.zygote, rig.domains:
        task = asyncio.create_task(rig.domains.run())
        try:
            if wait and not held:
                await rig.ready()
            yield rig
        finally:
            task.cancel()
            await asyncio.wait([task])
            if not task.cancelled():
                task.result()

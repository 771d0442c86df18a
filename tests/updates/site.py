"""Real domains on a repository, what renews them, and the journal of one command, on the disk."""

import asyncio
import json
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec

from agent import config
from agent.commands.verb import Verb
from agent.commands.verbs.models import ModelVerbs
from agent.errors import HoldfastError
from agent.health.conditions import Conditions
from agent.inference.admission import Admission
from agent.updates.models import Models
from agent.updates.probation import Probation
from agent.updates.repository import Repository
from agent.updates.trials import Trials
from agent.updates.watch import Parts
from tests.inference.domains.rig import DEADLINE_S, Rig, put, rules
from tests.updates.packs import pack

LOOK_S = 0.02
SHORT = config.Probation(probation_s=0.1, deaths_max=0, calls_min=5)


class Journal:
    """One command in a file, as the device's journal keeps it: steps, then one result."""

    def __init__(self, path: Path, id: str = "c-1") -> None:
        self.id = id
        self.path = path
        self.told: list[str] = []
        self.on_write: Callable[[str], None] = lambda _: None

    @property
    def lines(self) -> list[dict[str, Any]]:
        text = self.path.read_text() if self.path.exists() else ""
        return [json.loads(line) for line in text.splitlines()]

    @property
    def step(self) -> str:
        return next((one["step"] for one in reversed(self.lines) if "step" in one), "")

    @property
    def states(self) -> list[str]:
        """Its steps, by their names, and how it ended."""
        steps = [json.loads(one["step"])["at"] for one in self.lines if "step" in one]
        return steps + [one["state"] for one in self.lines if "state" in one]

    @property
    def result(self) -> dict[str, Any] | None:
        ends = [one for one in self.lines if "state" in one]
        assert len(ends) < 2, ends
        return ends[0] if ends else None

    async def note(self, step: str) -> None:
        self.write({"step": step})

    async def tell(self, progress: float, message: str = "") -> None:
        assert 0 <= progress <= 1
        self.told.append(message)

    def write(self, line: dict[str, Any]) -> None:
        what = line.get("state") or json.loads(line["step"])["at"]
        self.on_write(what)
        with self.path.open("a") as file:
            file.write(json.dumps(line) + "\n")
            file.flush()
            os.fsync(file.fileno())


class Site:
    """All that a command needs."""

    def __init__(self, folder: Path, settings: config.Models, **domains: config.Domain) -> None:
        self.folder = folder
        self.root = folder / "models"
        self.settings = settings
        self.rig = Rig(self.root, domains or {"d": rules()})
        self.conditions = Conditions(self.rig.clock)
        self.trials = Trials(folder / "trials.json")
        prove = Admission(self.rig.clock).prove
        hold, clock = self.rig.hold, self.rig.clock
        parts = Parts(self.rig.domains, prove, settings.probation, hold, clock, LOOK_S)
        self.probation = Probation(self.trials, parts, self.conditions)
        self.repository = Repository(self.root, settings.signed_by, settings.free_bytes_min)
        self.models = Models(settings, self.repository, self.rig.domains, self.probation)
        self.verbs = {one.name: one for one in ModelVerbs(self.models, self._is_open).verbs()}

    async def _is_open(self, id: str) -> bool:
        """Of those that were ordered here."""
        path = self.folder / f"{id}.log"
        return path.exists() and not Journal(path, id).result

    @property
    def held(self) -> dict[str, str]:
        return {one.name: one.cause for one in self.conditions.all()}

    async def order(self, journal: Journal, called: str, /, **args: Any) -> dict[str, Any]:
        """As the desk has it done, begun or gone on with; how it ended."""
        verb: Verb[Any] = self.verbs[called]
        act: Callable[[Any, Any], Awaitable[Any]] | None = verb.run
        if journal.step:
            act = verb.resume
        assert act
        try:
            async with asyncio.timeout(DEADLINE_S):
                done = await act(msgspec.convert(args, verb.args), journal)
        except HoldfastError as error:
            journal.write({"state": "failed", "message": str(error), "kind": kinds(error)})
        else:
            journal.write({"state": "succeeded", "result": msgspec.to_builtins(done)})
        assert journal.result
        return journal.result

    def ordered(self, called: str, id: str = "c-1", /, **args: Any) -> asyncio.Task[dict[str, Any]]:
        journal = Journal(self.folder / f"{id}.log", id)
        return asyncio.create_task(self.order(journal, called, **args))

    def there(self) -> list[str]:
        """All that lies among the models."""
        found = self.root.rglob("*")
        return sorted(str(one.relative_to(self.root)) for one in found if one.is_dir())


def drop(folder: Path, made: Path, name: str = "m.tar", **more: Any) -> dict[str, Any]:
    """A version as a file of the drop folder, and how a command names it."""
    (folder / "drop").mkdir(exist_ok=True)
    path, sha256 = pack(made, folder / "drop" / name, **more)
    return {"path": path.name, "sha256": sha256}


def kinds(error: HoldfastError) -> list[str]:
    return [one.__name__ for one in type(error).__mro__]


def models_of(folder: Path, **more: Any) -> config.Models:
    """The section `models`."""
    given = {"path": str(folder / "models"), "drop_path": str(folder / "drop"), "free_bytes_min": 0}
    return config.Models(**{**given, "probation": SHORT, **more})


def first(folder: Path, *versions: int) -> None:
    """A repository of the model m, as yet with version 1."""
    for version in versions or (1,):
        put(folder / "models", version)


@asynccontextmanager
async def begun(
    folder: Path,
    *,
    crashed: bool = False,
    wait: bool = True,
    held: str = "",
    domains: Any = None,
    **more: Any,
) -> AsyncIterator[Site]:
    """An agent, as far as its models go. `held`: why no process may be started."""
    site = Site(folder, models_of(folder, **more), **(domains or {}))
    if held:
        site.rig.hold.set(held, "lift it")
    site.probation.restore(crashed=crashed)
    async with site.rig.zygote, site.rig.domains:
        loops = [site.rig.domains.run(), site.probation.run()]
        tasks = [asyncio.create_task(one) for one in loops]
        try:
            if wait:
                await site.rig.ready()
            yield site
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
            for task in tasks:
                if not task.cancelled():
                    task.result()

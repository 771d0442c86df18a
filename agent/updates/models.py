"""What commands do to the models: install, activate, roll back, remove, list.

An order may end at any instant, with the agent or its machine. Before each effect it notes a step,
and begun again with that step it does what is left, once:

    install     fetching ─► unpacking ─► placing ─► placed ─► (as activate)
    activate    activating ─► the end of its probation (probation.py)
    roll back   rolling_back (going_back.py)
    remove      removing

Up to `placing` it begins anew: a version that lies in its place with the very content is the one
that it put there.

While no process may be started (safe mode) nothing is fetched for it. What was fetched, and could
not be installed as things stand, stays for the next order.

Limits  : `versions_max` of a model: the lowest that nobody needs go; VERSIONS_SHOWN_MAX in a list.
Recovery: as above; repository.py and probation.py say what theirs is.
"""

import asyncio
import logging
import threading
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TypeVar

from msgspec.structs import replace

from agent.config import Models as Settings
from agent.errors import HoldfastError, ModelError, NotNow, NotThere, RequestError
from agent.inference.domains.renewed import Renewed
from agent.updates.archive import Wanted
from agent.updates.going_back import GoingBack
from agent.updates.orders import (
    Content,
    Fetched,
    Order,
    Origin,
    Outcome,
    Row,
    Rows,
    Step,
    judged,
    step_of,
)
from agent.updates.probation import Probation
from agent.updates.repository import Repository
from agent.updates.trials import Trial

T = TypeVar("T")
log = logging.getLogger("domain")
VERSIONS_SHOWN_MAX = 1000


class Models:
    """Carries them out. But for `roll_back` and `rows` one waits for the other: the caller's lane
    sees to it.
    """

    def __init__(
        self,
        settings: Settings,
        repository: Repository,
        domains: Renewed,
        probation: Probation,
        content: Content | None = None,
    ) -> None:
        """`content` fetches what the fleet publishes; None: nobody does."""
        self._settings = settings
        self._repository = repository
        self._domains = domains
        self._probation = probation
        self._content = content
        self._going_back = GoingBack(domains, probation)

    def foreign(self, source: str) -> str:
        """The source of a target, where it is none of those that are configured; else ''."""
        return self._content.foreign(source) if self._content else source

    async def install(
        self, order: Order, origin: Origin, *, activate: bool, probation_s: float | None
    ) -> Outcome:
        """Fetch a version, have it show what it must, put it in its place; and have it serve.

        Raises NotNow where it could not show it now, and other HoldfastErrors: what is there
        serves on.
        """
        step = step_of(order.step)
        if step.at in ("placed", "activating"):
            placed = step
        else:
            placed = await self._install(order, origin, step)
        name, version = placed.name, placed.version
        removed = await self._thin_out(name, version)
        done = Outcome(name=name, version=version)
        if activate:
            done = await self.activate(order, name, version, probation_s)
        return replace(done, installed=placed.fresh, proved=placed.proved, removed=removed)

    async def activate(
        self, order: Order, name: str, version: int | None, probation_s: float | None
    ) -> Outcome:
        """Have a version serve (None: the newest); returns when its probation is over.

        Raises ModelError where it was taken back, or never served; NotThere, NotNow.
        """
        step = step_of(order.step)
        await self._domains.settled(name)
        if step.at != "activating":
            if version is None:
                version = await asyncio.to_thread(self._newest, name)
            former = self._domains.version(name)
            if former == version:
                await self._domains.load(name, version)  # it stays over restarts, too
                return Outcome(name=name, version=version, probation="none: it served already")
            if former is None and (choice := self._domains.chosen(name)):
                former = choice.version if choice.version != version else None
            known = (step.fresh, step.proved)
            step = Step("activating", name, version, former, *known)
            await order.note(step.text())
        for_s = self._settings.probation.probation_s if probation_s is None else probation_s
        trial = Trial(
            command=order.id,
            name=name,
            version=step.version,
            former=step.former,
            probation_s=for_s,
            left_s=for_s,
        )
        await self._probation.activate(trial)
        return judged(await self._probation.over(name, order.id, order.tell))

    async def roll_back(self, order: Order, name: str, of: str) -> Outcome:
        """Have the former version serve; going_back.py says more. Raises HoldfastError."""
        return await self._going_back.roll_back(order, name, of)

    async def remove(self, order: Order, name: str, version: int) -> Outcome:
        """Have a version be gone from the disk.

        Raises NotNow for one that serves, that is on probation, or that is to be gone back to then;
        NotThere, ModelError.
        """
        step = step_of(order.step)
        await self._domains.settled(name)
        trial = self._probation.watched(name)
        if trial and version in (trial.version, trial.former):
            raise NotNow(
                f"{name}/{trial.version} is on probation: {name}/{version} stays until then",
                "wait for its end, or order model.rollback",
            )
        if step.at != "removing":
            if version not in await asyncio.to_thread(self._repository.catalog.versions, name):
                await self._take_away(name, version)  # raises, and says what there is
            await order.note(Step("removing", name, version).text())
            await self._take_away(name, version)
        else:
            with suppress(NotThere):  # it was done, and not written down
                await self._take_away(name, version)
        await asyncio.to_thread(self._repository.clear)
        return Outcome(name=name, version=version)

    async def rows(self, name: str) -> Rows:
        """The versions of a model, or of all (''). Raises ModelError."""
        found = await asyncio.to_thread(self._rows, name)
        return Rows(found[:VERSIONS_SHOWN_MAX], max(0, len(found) - VERSIONS_SHOWN_MAX))

    async def _install(self, order: Order, origin: Origin, step: Step) -> Step:
        """It was this far when it was broken off; how far it is then: `placed`."""
        self._domains.may_start()
        step = replace(step, at="fetching")
        await order.note(step.text())
        fetched, path, wanted = await self._fetched(origin, order)
        try:
            placed = await self._placed(order, path, wanted, step)
        except HoldfastError as error:
            await self._over(None if isinstance(error, NotNow) else fetched)
            raise
        await self._over(fetched)
        return placed

    async def _placed(self, order: Order, path: Path, wanted: Wanted, step: Step) -> Step:
        await order.note(replace(step, at="unpacking").text())
        await order.tell(0.0, f"{path.name} is unpacked, and has to show what it must")
        model = await _halting(partial(self._repository.stage, path, wanted))
        name, version = model.manifest.name, model.manifest.version
        if not await asyncio.to_thread(self._repository.there, model):
            await self._domains.settled(name)
            proved = await self._domains.try_out(model)
            step = Step("placing", name, version, fresh=True, proved=proved)
            await order.note(step.text())
            await self._domains.stay(name)
            await asyncio.to_thread(self._repository.put, model)
            log.info("%s is installed", model.label)
        step = replace(step, at="placed", name=name, version=version)
        await order.note(step.text())
        return step

    async def _fetched(self, origin: Origin, order: Order) -> tuple[Fetched | None, Path, Wanted]:
        """The archive, and what it has to be. Raises HoldfastError."""
        if not origin.target:
            return None, self._dropped(origin.path), Wanted(origin.sha256)
        if self._content is None:
            raise RequestError(
                "nothing is fetched here: no repository is set up", "docs/updates.md"
            )
        found = await self._content.fetch(origin.target, order.tell, origin.source)
        if found.kind != "model" or not found.version.isdecimal():
            await self._content.drop(found)
            raise RequestError(
                f"{origin.target} is {found.kind} {found.name} {found.version}, and no version of "
                "a model",
                "name a target that was published as one",
            )
        return found, Path(found.path), Wanted(found.digest, found.name, int(found.version))

    def _dropped(self, name: str) -> Path:
        """A file below the drop folder. Raises RequestError."""
        if self._settings.drop_path is None:
            raise RequestError("no file is taken from here", "set models.drop_path to a folder")
        folder = Path(self._settings.drop_path).resolve()
        try:
            path = (folder / name).resolve()
        except (OSError, RuntimeError, ValueError) as error:
            raise RequestError(f"path: {name[:80]!r} is no file: {error}") from error
        if not path.is_relative_to(folder) or path == folder:
            raise RequestError(
                f"path: {name[:80]!r} leads out of {folder}", "name a file from that folder on"
            )
        return path

    async def _over(self, fetched: Fetched | None) -> None:
        """What was unpacked for it goes, and what was `fetched`."""
        try:
            await asyncio.to_thread(self._repository.clear)
        except ModelError as error:
            log.warning("%s", error)  # the next order tries again, and fails of it
        if fetched and self._content:
            await self._content.drop(fetched)

    async def _thin_out(self, name: str, fresh: int) -> list[int]:
        """Have the oldest go that nobody needs, beyond `versions_max`; which went."""
        versions = await asyncio.to_thread(self._repository.catalog.versions, name)
        choice, trial = self._domains.chosen(name), self._probation.watched(name)
        needed = {fresh, self._domains.version(name), self._domains.former(name)}
        needed |= {choice.version, choice.previous} if choice else set()
        needed |= {self._probation.former(name)}
        needed |= {trial.version, trial.former} if trial else set()
        surplus = max(0, len(versions) - self._settings.versions_max)
        gone = list[int]()
        for version in [one for one in versions if one not in needed][:surplus]:
            try:
                await self._take_away(name, version)
            except HoldfastError as error:
                log.warning("%s/%s stays: %s", name, version, error)
            else:
                log.info("%s/%s is removed: models.versions_max", name, version)
                gone.append(version)
        if gone:
            await asyncio.to_thread(self._repository.clear)
        return gone

    async def _take_away(self, name: str, version: int) -> None:
        act = partial(self._repository.take_away, name, version)
        await self._domains.remove(name, version, act)
        await self._probation.forget(name, version)

    def _newest(self, name: str) -> int:
        return self._repository.catalog.newest(name).manifest.version

    def _rows(self, name: str) -> list[Row]:
        catalog = self._repository.catalog
        names = [name] if name else catalog.names()
        return [self._row(one, version) for one in names for version in catalog.versions(one)]

    def _row(self, name: str, version: int) -> Row:
        trial, size_bytes, error = self._probation.last(name), 0, ""
        try:
            manifest = self._repository.catalog.declared(name, version).manifest
            size_bytes = manifest.size_bytes + sum(one.size_bytes for one in manifest.external)
        except ModelError as failed:
            error = str(failed)
        return Row(
            name=name,
            version=version,
            serves=self._domains.version(name) == version,
            former=self._domains.former(name) == version,
            probation=trial.state if trial and trial.version == version else "",
            size_bytes=size_bytes,
            error=error[:200],
        )


async def _halting(work: Callable[[Callable[[], bool]], T]) -> T:
    """`work` in a thread, which is asked to give up, and waited for, where nobody waits for it."""
    halt = threading.Event()
    task = asyncio.ensure_future(asyncio.to_thread(work, halt.is_set))
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        halt.set()
        await asyncio.wait([task])
        raise

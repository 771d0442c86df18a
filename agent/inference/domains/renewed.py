"""Domains whose models are renewed while they run: what updates need beyond load and rollback.

Each is one order among the others: carried out after those before it, noted before it is answered.
"""

import asyncio
from collections.abc import Callable
from contextlib import suppress
from functools import partial

from agent.errors import NotNow, NotThere
from agent.inference.catalog import Model
from agent.inference.domains.choices import Choice
from agent.inference.domains.domains import Domains


class Renewed(Domains):
    """Domains; agent/updates/ gives the orders."""

    def version(self, name: str) -> int | None:
        """The version that serves, ready or not; None: none."""
        domain = self.serving(name)
        model = domain.models.get(name) if domain else None
        return model.manifest.version if model else None

    async def settled(self, name: str) -> None:
        """Until it is known which version serves, where that is about to be."""
        domain = self.serving(name)
        if domain and not domain.models and not self._hold.holds:
            with suppress(TimeoutError):
                async with asyncio.timeout(domain.settings.start_timeout_s):
                    await domain.tried.wait()

    def may_start(self) -> None:
        """Raises NotNow while no process may be started, for a proof or to serve."""
        self._hold.check()

    def chosen(self, name: str) -> Choice | None:
        """What an operator chose last; None: nothing yet, each start takes the newest."""
        return self._choices.of(name)

    def former(self, name: str) -> int | None:
        """The version that a rollback would go back to; None: there is none."""
        domain, choice = self.serving(name), self.chosen(name)
        model = domain.previous.get(name) if domain else None
        if domain and model and model != domain.models.get(name):
            return model.manifest.version
        return choice.previous if choice else None

    async def try_out(self, model: Model) -> bool:
        """Have a version that does not serve show that it may; False: no domain has the model.

        It does so in a process of its domain's that is thrown away. Raises NotNow, ModelError.
        """
        name = model.manifest.name
        if self.serving(name) is None:
            return False
        async with self._turn:
            self._hold.check()
            domain = self._with(name)
            await asyncio.to_thread(self._versions.suits, model, domain.settings)
            await domain.prove(model)
        return True

    async def return_to(self, name: str, version: int) -> None:
        """Have a version serve again: at once, while its processes stand by; while none may be
        started, as soon as they may.

        Raises NotThere, NotNow, ModelError.
        """
        if self._hold.holds and self.version(name) is None:
            await self._begin_with(name, version)
            if self._hold.holds:
                return
        if self.former(name) == version:
            await self.roll_back(name)
        if self.version(name) != version:  # another order came between
            await self.load(name, version)

    async def _begin_with(self, name: str, version: int) -> None:
        async with self._turn:
            settings, choice = self._with(name).settings, self.chosen(name)
            await asyncio.to_thread(self._versions.asked, name, version, settings)
            former = choice.version if choice else None
            await self._note(partial(self._choices.choose, name, version, former), name)

    async def stay(self, name: str) -> None:
        """Have what serves now serve after a restart too, though a newer version may lie there.

        Raises ModelError.
        """
        async with self._turn:
            version = self.version(name)
            if version is not None and self.chosen(name) is None:
                note = partial(self._choices.choose, name, version, None)
                await self._note(note, f"{name}/{version}")

    def choose(self, name: str, version: int, former: int) -> None:
        """What is to begin with: for a time when no domain runs. Raises OSError."""
        self._choices.choose(name, version, former)

    async def remove(self, name: str, version: int, act: Callable[[], None]) -> None:
        """Go back to this version no more, and have `act` take it away, in a thread.

        Raises NotNow where it serves, or is the last one of a model that a domain has; NotThere,
        ModelError.
        """
        async with self._turn:
            choice, domain = self.chosen(name), self.serving(name)
            chosen = choice is not None and choice.version == version and not choice.unloaded
            if domain and (chosen or self.version(name) == version):
                raise NotNow(f"{name}/{version} is in use", f"holdfast models load {name}/VERSION")
            known = await asyncio.to_thread(self.catalog.versions, name)
            if version not in known:
                said = f": there are {', '.join(map(str, known))}" if known else ""
                raise NotThere(f"there is no version {version} of model {name!r}{said}", _LS)
            if domain and known == [version]:
                raise NotNow(
                    f"{name}/{version} is the last version there, and domain {domain.name} has it",
                    "take it out of the configuration first, then: holdfast domains apply",
                )
            if choice:
                forget = partial(self._choices.forget, name, version)
                await self._note(forget, f"{name}/{version}")
            if domain:
                domain.forget(name, version)
            await asyncio.to_thread(act)


_LS = "holdfast models ls"

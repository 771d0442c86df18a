"""All domains of the device: built from the configuration, changed while they run.

A domain that is added, changed or removed leaves the others alone. Which version of a model serves
is chosen here: the version that served last (choices.py), else the newest that is whole.
"""

import asyncio
import logging
import os
from collections.abc import Callable, Mapping
from typing import Protocol, Self

from agent.clock import Clock
from agent.config import Domain as Settings
from agent.errors import ConfigError, ModelError, NotNow, NotThere
from agent.inference.catalog import Catalog, Model
from agent.inference.domains.choices import Choices
from agent.inference.domains.domain import Domain, Prove
from agent.inference.domains.instance import Cell
from agent.inference.domains.lease import Lease
from agent.tasks import Crew

log = logging.getLogger("domain")


class Limits(Cell, Protocol):
    """What holds a domain's processes within its limits."""

    async def change(self, settings: Settings) -> None:
        """Other limits hold from now on."""

    async def close(self) -> None:
        """No process is left."""


class Domains:
    """An async context manager; `run` keeps them alive."""

    def __init__(
        self,
        settings: Mapping[str, Settings],
        catalog: Catalog,
        choices: Choices,
        clock: Clock,
        changed: Callable[[Domain], None],
        prove: Prove,
        confine: Callable[[str, Settings], Limits],
        lease: Lease | None = None,
    ) -> None:
        """`confine` makes the limits of a domain; for the rest, see Domain. Raises ConfigError.

        `lease` shares out the time of an accelerator (none: of the GPU).
        """
        self.catalog = catalog
        self._choices = choices
        self._clock = clock
        self._changed = changed
        self._prove = prove
        self._confine = confine
        self._lease = lease or Lease(clock)
        self._crew = Crew()
        self._cells: dict[str, Limits] = {}
        self._domains: dict[str, Domain] = {}
        self._by_model: dict[str, Domain] = {}
        self._running: dict[str, asyncio.Task[None]] = {}
        self._turn = asyncio.Lock()
        self._distinct(settings)
        for name, one in settings.items():
            self._add(name, one, settings)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._crew.end()
        for name in list(self._domains):
            await self._leave(name)

    async def run(self) -> None:
        """Run them all, for ever."""
        for name in self._domains:
            self._begin(name)
        await self._crew.run()

    def all(self) -> list[Domain]:
        """Each domain."""
        return list(self._domains.values())

    def named(self, name: str) -> Domain:
        """The domain of this name. Raises NotThere."""
        domain = self._domains.get(name)
        if domain is None:
            raise NotThere(f"no domain {name!r}", f"known: {', '.join(self._domains)}")
        return domain

    def serving(self, model: str) -> Domain | None:
        """The domain that has this model."""
        return self._by_model.get(model)

    async def load(self, name: str, version: int | None) -> Model:
        """Have a version of a model serve (none: the newest), once it is proved.

        Raises NotThere, ModelError; then the version that served goes on to serve.
        """
        async with self._turn:
            domain = self._with(name)
            model = await asyncio.to_thread(self._admitted, name, version, domain.settings)
            if domain.models.get(name) != model or not domain.ready.is_set():
                await domain.replace({**domain.models, name: model})
            self._note(domain)
            return model

    async def unload(self, name: str) -> None:
        """Serve a model no longer until it is loaded again.

        Raises NotThere, NotNow, ModelError.
        """
        async with self._turn:
            domain = self._with(name)
            rest = {key: model for key, model in domain.models.items() if key != name}
            if name not in domain.models:
                raise NotThere(f"model {name} is not loaded", "holdfast models ls")
            if not rest:
                raise NotNow(
                    f"{name} is the only model of domain {domain.name}",
                    "remove the domain from the configuration, then: holdfast domains apply",
                )
            await domain.replace(rest)

    async def roll_back(self, name: str) -> Model:
        """Have the version serve that served before. Raises NotThere, NotNow, ModelError."""
        async with self._turn:
            domain = self._with(name)
            if domain.previous.get(name) not in (None, domain.models.get(name)):
                await domain.roll_back()
            else:
                choice = self._choices.of(name)
                if choice is None or choice.previous is None:
                    raise NotNow(
                        f"model {name}: there is no former version to go back to",
                        f"holdfast models load {name}/VERSION",
                    )
                version, settings = choice.previous, domain.settings
                model = await asyncio.to_thread(self._admitted, name, version, settings)
                await domain.replace({**domain.models, name: model})
            self._note(domain)
            return domain.models[name]

    async def apply(self, settings: Mapping[str, Settings]) -> dict[str, str]:
        """Have these domains, and no others; what was done with each that is not as it was.

        Raises ConfigError, ModelError for the first that cannot be: it, and those after it, stay
        as they were.
        """
        async with self._turn:
            self._distinct(settings)
            done: dict[str, str] = {}
            for name in [one for one in self._domains if one not in settings]:
                await self._remove(name)
                done[name] = "removed"
            for name, one in settings.items():
                if name not in self._domains:
                    self._add(name, one, settings)
                    self._begin(name)
                    done[name] = "added"
                elif self._domains[name].settings != one:
                    await self._change(name, one)
                    done[name] = "changed"
            return done

    def _add(self, name: str, settings: Settings, all_of: Mapping[str, Settings]) -> None:
        def choose() -> dict[str, Model]:
            return {model: self._chosen(model, settings) for model in settings.models}

        cell = self._confine(name, settings)
        parts = (self._clock, self._changed, self._prove, cell)
        domain = Domain(name, settings, choose, *parts, _threads(settings, all_of), self._lease)
        self._cells[name], self._domains[name] = cell, domain
        self._by_model |= dict.fromkeys(settings.models, domain)

    async def _change(self, name: str, settings: Settings) -> None:
        domain = self._domains[name]
        models = {
            model: domain.models[model]
            if model in domain.models
            else await asyncio.to_thread(self._chosen, model, settings)
            for model in settings.models
        }
        await self._cells[name].change(settings)
        try:
            await domain.change(settings, models)
        except ModelError:
            await self._cells[name].change(domain.settings)
            raise
        self._by_model = {m: d for m, d in self._by_model.items() if d is not domain}
        self._by_model |= dict.fromkeys(models, domain)

    async def _remove(self, name: str) -> None:
        domain = self._domains[name]
        self._by_model = {m: d for m, d in self._by_model.items() if d is not domain}
        if task := self._running.pop(name, None):
            task.cancel()
            await asyncio.wait([task])
        await self._leave(name)
        log.info("domain %s removed", name)

    async def _leave(self, name: str) -> None:
        domain = self._domains.pop(name)
        await domain.__aexit__()
        await self._cells.pop(name).close()
        self._changed(domain)

    def _begin(self, name: str) -> None:
        self._running[name] = self._crew.begin(self._domains[name].run())

    def _with(self, model: str) -> Domain:
        domain = self._by_model.get(model)
        if domain is None:
            raise NotThere(
                f"no domain has the model {model!r}",
                "name it in the models of a domain: " + ", ".join(self._domains),
            )
        return domain

    def _chosen(self, name: str, settings: Settings) -> Model:
        """The version to begin with. Raises ModelError."""
        choice = self._choices.of(name)
        if choice is None:
            return self._admitted(name, None, settings)
        try:
            return self._admitted(name, choice.version, settings)
        except ModelError as error:
            if choice.previous is None:
                raise
            log.warning("%s; version %d serves in its place", error, choice.previous)
            return self._admitted(name, choice.previous, settings)

    def _admitted(self, name: str, version: int | None, settings: Settings) -> Model:
        """A version that is whole and signed, and whose operators its first device has."""
        model = self.catalog.verified(name, version)
        self.catalog.check(model, settings.devices[-1])
        return model

    def _note(self, domain: Domain) -> None:
        """Remember what serves now. Raises ModelError when that cannot be."""
        try:
            for name, model in domain.models.items():
                self._choices.choose(name, model.manifest.version)
        except OSError as error:
            raise ModelError(
                f"{domain.models} serve, but that cannot be noted: {error}",
                "after a restart the version before serves again: look at the disk of the store",
            ) from error

    @staticmethod
    def _distinct(settings: Mapping[str, Settings]) -> None:
        seen: dict[str, str] = {}
        for name, one in settings.items():
            for model in one.models:
                if model in seen:
                    raise ConfigError(
                        f"domains.{name}.models: {model} is in domain {seen[model]} already",
                        "a model is served by one domain",
                    )
                seen[model] = name


def _threads(settings: Settings, all_of: Mapping[str, Settings]) -> int:
    """Of each instance: as set, or its part of all CPUs but two."""
    if settings.threads:
        return settings.threads
    unset = [one.instances.max for one in all_of.values() if one.threads is None]
    return max(1, max(1, (os.cpu_count() or 1) - 2) // max(1, sum(unset)))

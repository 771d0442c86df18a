"""All domains of the device: built from the configuration, changed while they run.

A domain that is added, changed or removed leaves the others alone. Orders are carried out one after
the other. Which version of a model serves, versions.py says; an operator's choice is noted before
an order is answered.
"""

import asyncio
import logging
import os
from collections.abc import Callable, Mapping
from functools import partial
from typing import Protocol, Self

from agent.clock import Clock
from agent.config import Domain as Settings
from agent.errors import ConfigError, HoldfastError, ModelError, NotNow, NotThere
from agent.faults import Classify, class_of
from agent.inference.catalog import Catalog, Model
from agent.inference.domains.choices import Choices
from agent.inference.domains.domain import Domain, Parts, Prove
from agent.inference.domains.hold import Hold
from agent.inference.domains.instance import Cell
from agent.inference.domains.lease import Lease
from agent.inference.domains.twinned import Twinned
from agent.inference.domains.versions import Beginning, Versions
from agent.inference.domains.zygote import Zygote
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
        zygote: Zygote,
        lease: Lease | None = None,
        needed: str | None = None,
        hold: Hold | None = None,
        classify: Classify = class_of,
    ) -> None:
        """`confine` makes the limits of a domain; for the rest, see Domain. Raises ConfigError.

        `lease` shares out the time of an accelerator (none: of the GPU); `needed` is a model that
        cannot be unloaded; while `hold` holds nothing is started, nor changed. `classify` names the
        class of an accelerator's fault, from a text.
        """
        self.catalog = catalog
        self._needed = needed
        self._choices = choices
        self._versions = Versions(catalog, choices, needed)
        self._clock = clock
        self._changed = changed
        self._prove = prove
        self._confine = confine
        self._zygote = zygote
        self._lease = lease or Lease(clock)
        self._classify = classify
        self._crew = Crew()
        self._cells: dict[str, Limits] = {}
        self._beginnings: dict[str, Beginning] = {}
        self._domains: dict[str, Domain] = {}
        self._by_model: dict[str, Domain] = {}
        self._running: dict[str, asyncio.Task[None]] = {}
        self._hold = hold or Hold()
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
        self._crew.begin(self._begin_all())
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

    def rest(self, why: Mapping[str, str]) -> None:
        """From now on these take no calls, for these reasons, and all others do."""
        for domain in self.all():
            domain.rests = why.get(domain.name, "")

    def fell(self, fault: str, cause: str) -> None:
        """Somebody saw an accelerator fail: those that prefer one go on on the CPU."""
        for domain in self.all():
            domain.fell(fault, cause)

    def serving(self, model: str) -> Domain | None:
        """The domain that has this model."""
        return self._by_model.get(model)

    def instead(self, domain: Domain) -> dict[str, str]:
        """By model: why the version that should serve in it does not, and another one does."""
        first = self._beginnings.get(domain.name)
        if first is None or not domain.models:
            return {}
        return {name: why for name, why in first.instead.items() if name in domain.models}

    async def load(self, name: str, version: int | None) -> Model:
        """Have a version of a model serve (none: the newest), once it is proved.

        Raises NotThere, NotNow, ModelError; then the version that served goes on to serve.
        """
        async with self._turn:
            self._hold.check()
            domain = self._with(name)
            model = await asyncio.to_thread(self._versions.asked, name, version, domain.settings)
            await self._serve(domain, model)
            return model

    async def unload(self, name: str) -> None:
        """Serve a model no longer until it is loaded again, not after a restart either.

        Raises NotThere, NotNow, ModelError.
        """
        async with self._turn:
            self._hold.check()
            domain = self._with(name)
            rest = {key: model for key, model in domain.models.items() if key != name}
            if name not in domain.models:
                raise NotThere(f"model {name} is not loaded", "holdfast models ls")
            if name == self._needed:
                raise NotNow(
                    f"the agent hears with {name}",
                    "name another domain in audio.domain first, and restart the agent",
                )
            if not rest:
                raise NotNow(
                    f"{name} is the only model of domain {domain.name}",
                    "remove the domain from the configuration, then: holdfast domains apply",
                )
            version = domain.models[name].manifest.version
            await domain.replace(rest)
            await self._note(partial(self._choices.put_aside, name, version), name)

    async def roll_back(self, name: str) -> Model:
        """Have the version serve that served before. Raises NotThere, NotNow, ModelError."""
        async with self._turn:
            self._hold.check()
            domain = self._with(name)
            choice, model = self._choices.of(name), domain.previous.get(name)
            if model is None or model == domain.models.get(name):
                if choice is None or choice.previous is None:
                    raise NotNow(
                        f"model {name}: there is no former version to go back to",
                        f"holdfast models load {name}/VERSION",
                    )
                version, settings = choice.previous, domain.settings
                model = await asyncio.to_thread(self._versions.asked, name, version, settings)
            try:
                await self._serve(domain, model)
            except ModelError:
                await asyncio.to_thread(self._versions.there, name, model.manifest.version)
                raise
            return model

    async def apply(self, settings: Mapping[str, Settings]) -> dict[str, str]:
        """Have these domains, and no others; what was done with each that is not as it was.

        Raises ConfigError, NotNow, ModelError. What the files show is looked at first: then nothing
        was done. A changed domain whose models do not prove themselves stays as it was, and with it
        all that is not done yet; the error says what is.
        """
        async with self._turn:
            self._hold.check()
            self._distinct(settings)
            known = self._domains
            changed = {n: s for n, s in settings.items() if n in known and known[n].settings != s}
            models = {name: await self._models(known[name], s) for name, s in changed.items()}
            done: dict[str, str] = {}
            for name, one in changed.items():
                try:
                    await self._change(name, one, models[name], settings)
                except HoldfastError as error:
                    so_far = f" (done before: {', '.join(done)})" if done else ""
                    raise ModelError(
                        f"domain {name} stays as it was: {error}{so_far}", error.hint
                    ) from error
                done[name] = "changed"
            added = {name: one for name, one in settings.items() if name not in known}
            for name, one in added.items():  # before others go: a model may move from one of them
                self._add(name, one, settings)
            try:
                for name in [one for one in self._domains if one not in settings]:
                    await self._remove(name)
                    done[name] = "removed"
            finally:  # only now: there may not be memory for both
                for name in added:
                    self._begin(name)
                    done[name] = "added"
            return done

    async def _serve(self, domain: Domain, model: Model) -> None:
        """Have a version serve in the place of its former one, and note it."""
        name, former = model.manifest.name, domain.models.get(model.manifest.name)
        if former != model or not domain.ready.is_set():
            await domain.replace({**await self._models(domain, domain.settings), name: model})
        self._beginnings[domain.name].instead.pop(name, None)  # it is what was asked for
        self._changed(domain)
        before = former.manifest.version if former else None
        act = partial(self._choices.choose, name, model.manifest.version, before)
        await self._note(act, model.label)

    async def _models(self, domain: Domain, settings: Settings) -> dict[str, Model]:
        """What a domain is to serve: what it does, and of the rest the best. Raises ModelError."""
        found = dict[str, Model]()
        for name in self._versions.wanted(settings):
            if known := domain.models.get(name):
                if _asks_more(settings, domain.settings):
                    await asyncio.to_thread(self._versions.suits, known, settings)
                found[name] = known
            else:
                best = partial(self._versions.best, name, settings, {})
                found[name] = (await asyncio.to_thread(best))[0]
        return found

    def _add(self, name: str, settings: Settings, all_of: Mapping[str, Settings]) -> None:
        cell = self._confine(name, settings)
        first = self._beginnings[name] = Beginning(self._versions, settings)
        ways = (self._clock, self._changed, self._prove, cell, self._zygote)
        more = (_threads(settings, all_of), self._lease, first.refused)
        domain = Twinned(name, settings, Parts(first.choose, *ways, *more), self._classify)
        self._cells[name], self._domains[name] = cell, domain
        self._by_model |= dict.fromkeys(settings.models, domain)

    async def _change(
        self,
        name: str,
        settings: Settings,
        models: Mapping[str, Model],
        all_of: Mapping[str, Settings],
    ) -> None:
        domain, cell = self._domains[name], self._cells[name]
        await cell.change(settings)
        try:
            await domain.change(settings, models, _threads(settings, all_of))
        except BaseException:  # whatever it was: the limits are those of the settings that hold
            await cell.change(domain.settings)
            raise
        self._by_model = {m: d for m, d in self._by_model.items() if d is not domain}
        self._by_model |= dict.fromkeys(settings.models, domain)
        self._changed(domain)

    async def _remove(self, name: str) -> None:
        domain = self._domains[name]
        self._by_model = {m: d for m, d in self._by_model.items() if d is not domain}
        await domain.retire()
        if task := self._running.pop(name, None):
            task.cancel()
            await asyncio.wait([task])
        await self._leave(name)
        log.info("domain %s removed", name)

    async def _leave(self, name: str) -> None:
        domain = self._domains.pop(name)
        del self._beginnings[name]
        await domain.__aexit__()
        await self._cells.pop(name).close()
        self._changed(domain)

    async def _begin_all(self) -> None:
        if self._hold.holds:
            self._wait(self._hold.why, self._hold.hint)
            await self._hold.over()
            self._wait("starting", "")
        for name in [one for one in self._domains if one not in self._running]:
            self._begin(name)

    def _wait(self, why: str, hint: str) -> None:
        for domain in self._domains.values():
            domain.wait(why, hint)
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

    async def _note(self, act: Callable[[], None], what: str) -> None:
        """Have a choice on the disk. Raises ModelError when that cannot be."""
        try:
            await asyncio.to_thread(act)
        except OSError as error:
            raise ModelError(
                f"{what}: it is done, but cannot be noted: {error}",
                "after a restart it is as before: look at the disk of the store",
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


def _asks_more(settings: Settings, former: Settings) -> bool:
    """Whether a model that serves may not do so under these."""
    return (settings.engine, settings.devices) != (former.engine, former.devices)


def _threads(settings: Settings, all_of: Mapping[str, Settings]) -> int:
    """Of each instance: as set, or its part of all CPUs but two, and no more than its own CPUs."""
    if settings.threads:
        return settings.threads
    unset = [one.instances.max for one in all_of.values() if one.threads is None]
    part = max(1, (os.cpu_count() or 1) - 2) // max(1, sum(unset))
    return max(1, min(part, len(settings.cpu_numbers) or part))

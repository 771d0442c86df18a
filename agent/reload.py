"""The domains as the configuration file has them now, on an operator's order or a SIGHUP."""

import asyncio
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from agent import config_file
from agent.config import Config, Domain
from agent.errors import ConfigError, HoldfastError
from agent.health.conditions import Conditions

log = logging.getLogger("domain")


class Domains(Protocol):
    """Who has them; agent/inference/domains/domains.py says what it raises."""

    async def apply(self, settings: Mapping[str, Domain]) -> dict[str, str]: ...  # noqa: D102


class Reload:
    """Reads the file again; `run` does so whenever it was asked for with `ask`."""

    def __init__(
        self, path: Path, began_with: Config, domains: Domains, conditions: Conditions
    ) -> None:
        self._path = path
        self._began_with = began_with
        self._domains = domains
        self._conditions = conditions
        self._asked = asyncio.Event()

    def ask(self) -> None:
        """Have the domains be as the file says, soon; how it went, the log and a condition say."""
        self._asked.set()

    async def now(self) -> dict[str, str]:
        """Have the domains be as the file says: what was done to which. Raises HoldfastError."""
        done = await self._domains.apply(self._settings())
        self._conditions.clear("domains_not_applied", "configuration")
        return done

    async def run(self) -> None:
        """Do what is asked, for ever."""
        while True:
            await self._asked.wait()
            self._asked.clear()
            try:
                done = await self.now()
            except HoldfastError as error:
                remedy = error.hint or "mend it, then: holdfast domains apply"
                self._conditions.hold(
                    "domains_not_applied", "configuration", "warning", str(error), remedy
                )
            else:
                log.info("the domains of the configuration hold: %s", done or "no change")

    def _settings(self) -> dict[str, Domain]:
        """The domains of the file.

        Raises ConfigError, also where the domain that hears would be gone: it is chosen at the
        start of the agent.
        """
        found = config_file.load(self._path)
        hearing = self._began_with.audio.domain
        model = self._began_with.domains_all[hearing].models[0]
        if found.audio.domain != hearing:
            raise ConfigError(
                f"audio.domain: is {found.audio.domain}, but {hearing} hears as long as this agent "
                "runs",
                "restart the agent for that; the rest can be applied without it",
            )
        if found.domains_all[hearing].models[0] != model:
            raise ConfigError(
                f"domains.{hearing}.models: {model} hears as long as this agent runs, and must be "
                "the first of them",
                "restart the agent for that; the rest can be applied without it",
            )
        return found.domains_all

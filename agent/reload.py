"""The domains as the configuration has them now, while the agent runs."""

import logging
from collections.abc import Mapping
from typing import Protocol

from agent.config import Config, Domain
from agent.errors import ConfigError
from agent.health.conditions import Conditions

log = logging.getLogger("domain")


class Domains(Protocol):
    """Who has them; agent/inference/domains/domains.py says what it raises."""

    async def apply(self, settings: Mapping[str, Domain]) -> dict[str, str]: ...  # noqa: D102


class Reload:
    """Has the domains be so."""

    def __init__(self, began_with: Config, domains: Domains, conditions: Conditions) -> None:
        self._began_with = began_with
        self._domains = domains
        self._conditions = conditions

    async def apply(self, settings: Config) -> dict[str, str]:
        """Have the domains be as it says: what was done to which. Raises HoldfastError."""
        self._check(settings)
        done = await self._domains.apply(settings.domains_all)
        self._conditions.clear("domains_not_applied", "configuration")
        log.info("the domains of the configuration hold: %s", done or "no change")
        return done

    def restart(self, _: Config, settings: Config) -> str:
        """Why that takes a restart; empty: it does not."""
        try:
            self._check(settings)
        except ConfigError as error:
            return str(error)
        return ""

    def _check(self, found: Config) -> None:
        """Raises ConfigError where the domain that hears would be gone: it is chosen at the start
        of the agent."""
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

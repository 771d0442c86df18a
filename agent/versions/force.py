"""What is in force in this run of the agent, and how it becomes another."""

from collections.abc import Mapping
from contextlib import suppress

from agent.config import Config
from agent.errors import HoldfastError
from agent.versions.plan import Hot, Plan, plan


class Force:
    """The settings, and the number of the version that they are of; 0: the file of --config."""

    def __init__(self, settings: Config, number: int, hot: Mapping[str, Hot]) -> None:
        self.settings = settings
        self.number = number
        self._hot = hot

    def plan(self, settings: Config) -> Plan:
        """What lies between."""
        return plan(self.settings, settings, self._hot)

    async def change(self, settings: Config, found: Plan) -> None:
        """Have these, none of which takes a restart. Raises HoldfastError: then all is as it was,
        or a condition says what of it is not."""
        done, before = [], self.settings
        try:
            for name in [one for one in self._hot if one in found.changed]:
                done.append(name)
                await self._hot[name].change(settings)
        except HoldfastError:
            for name in done:
                with suppress(HoldfastError):
                    await self._hot[name].change(before)
            raise
        self.settings = settings

    async def change_some(self, settings: Config, found: Plan) -> object:
        """Have what takes no restart; what the change of the domains says. Raises HoldfastError.

        The domains are told in any case: what failed before may do now.
        """
        for name, hot in self._hot.items():
            if name in found.changed and name not in found.restart and name != "domains":
                await hot.change(settings)
        done = await self._hot["domains"].change(settings)
        if not found.restart:
            self.settings = settings
        return done

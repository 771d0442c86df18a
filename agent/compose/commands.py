"""What can be ordered, and where. One more file of verbs is one more line in `_verbs`."""

import asyncio
import hashlib
import logging
import secrets
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Protocol

import msgspec

from agent import logs
from agent.api.entry.tokens import Tokens
from agent.commands import aspects, trust
from agent.commands.catalogue import Catalogue
from agent.commands.desk import Desk
from agent.commands.trust import Refused, Rules
from agent.commands.twin import Aspect, Twin
from agent.commands.verb import Verb
from agent.commands.verbs.commands import CommandVerbs
from agent.commands.verbs.config import ConfigVerbs
from agent.commands.verbs.device import DeviceVerbs
from agent.commands.verbs.diagnostics import Check, DiagnosticVerbs
from agent.commands.verbs.domains import DomainVerbs
from agent.commands.verbs.jobs import JobVerbs, Run
from agent.commands.verbs.sync import SyncVerbs
from agent.commands.verbs.tokens import TokenVerbs
from agent.commands.verbs.watchdog import WatchdogVerbs
from agent.compose.core import Core
from agent.compose.health import HealthParts
from agent.compose.inference import InferenceParts
from agent.compose.link import LinkParts
from agent.compose.support import SupportParts
from agent.compose.watchdog import WatchdogParts
from agent.host.root.forms import Reboot
from agent.jobs.calls import parsed
from agent.protocol.topics import Topics
from agent.sync.orders import Orders
from agent.sync.twins import Twins
from agent.versions.versions import Versions


class HasVerbs(Protocol):
    """A file of verbs."""

    def verbs(self) -> list[Verb[Any]]: ...  # noqa: D102


class CommandParts:
    """The desk, and its door at the link."""

    def __init__(
        self,
        core: Core,
        inference: InferenceParts,
        link: LinkParts,
        watchdog: WatchdogParts,
        health: HealthParts,
        versions: Versions,
        tokens: Tokens,
        restart: Callable[[str], None],
        agent: Callable[[], Awaitable[Any]],
        more: Sequence[HasVerbs],
    ) -> None:
        """`restart` ends the agent in order, and has it started again; `agent` tells which version
        of it runs; `more` are the verbs of other parts."""
        self._core = core
        self._inference = inference
        self._link = link
        self._watchdog = watchdog
        self._health = health
        self._versions = versions
        self._tokens = tokens
        self._restart = restart
        self._agent = agent
        self.support = SupportParts(core, health, watchdog, versions, self._checks())
        settings = core.settings.commands
        verbs = [verb for one in (*self._verbs(), *more) for verb in one.verbs()]
        self.desk = Desk(
            core.store.journal,
            Catalogue(verbs),
            Rules(core.device, settings.signed, settings.keys, settings.from_plant),
            core.known,
            core.clock,
        )
        self.twin = Twin(
            *(core.device, self._aspects(), core.store.twin, self.desk),
            *(self._may_want, core.clock),
        )
        topics = Topics(core.settings.link.topic_prefix, core.device)
        link.join(Orders(self.desk, core.store.journal, topics, link.pace, core.clock))
        link.join(Twins(self.twin, topics, core.conditions))

    async def run(self) -> None:
        """Carry out what is ordered, and what is wanted, for ever."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self.desk.run())
            group.create_task(self.twin.run())

    def _may_want(self, by: str) -> None:
        """Raises Refused. Of an unsigned document each grave command is refused by itself."""
        rules = self.desk.rules
        if by:
            trust.known(by, rules)
        elif rules.signed == "all":
            raise Refused("not_signed", "commands.signed is all: the twin must be signed")

    def _aspects(self) -> list[Aspect]:
        pace = self._link.pace
        return [
            aspects.log_level(lambda: logging.getLevelName(logging.getLogger().level).lower()),
            aspects.paused(lambda: pace.orders.paused_until is not None),
            aspects.rate(lambda: pace.orders.limit_bytes_per_s),
            aspects.models(self._serving),
            aspects.ConfigAspect(self._versions.live).aspect(),
            aspects.agent(self._agent),
        ]

    def _verbs(self) -> list[HasVerbs]:
        core, parts, watchdog = self._core, self._inference, self._watchdog
        tokens, link = self._tokens, self._link
        return [
            DeviceVerbs(
                *(self._health.status.document, self._level, self._began_anew, self._rebooted),
                (core.clock.boot, secrets.token_hex(4)),
            ),
            SyncVerbs(link.control, link.report.state),
            DomainVerbs(
                lambda name: parts.domains.named(name).restart(),
                *(self._versions.again, self._health.views.domains),
            ),
            WatchdogVerbs(watchdog.watchdog, watchdog.chronicle.last, watchdog.starts.resume),
            TokenVerbs(self._token_rows, tokens.place, tokens.revoke, tokens.get),
            ConfigVerbs(self._versions, core.store.journal.is_open),
            JobVerbs(self._submitted, parts.jobs.show, parts.jobs.cancel),
            DiagnosticVerbs(self._checks(), lambda level: logs.RECENT.lines(0, level).lines),
            CommandVerbs(
                lambda name, who: self.desk.cancel(name, who)
            ),  # the desk is made of these
            self.support,
        ]

    def _serving(self) -> dict[str, int]:
        """By name, the version of each model that serves."""
        return {
            name: model.manifest.version
            for domain in self._inference.domains.all()
            for name, model in domain.models.items()
        }

    def _level(self, level: str | None) -> str:
        holds = level or self._core.settings.log_level
        logging.getLogger().setLevel(holds.upper())
        return holds

    async def _began_anew(self, why: str) -> str:
        await self._versions.count_restart()
        self._restart(why)
        return "the agent ends, and begins anew"

    async def _rebooted(self, why: str) -> str:
        logging.getLogger("commands").warning("the machine boots anew: %s", why)
        return await self._watchdog.root.ask(Reboot())

    def _token_rows(self) -> list[dict[str, Any]]:
        return [
            {"id": one.id, "name": one.name, "scopes": one.scopes, "created_us": one.created_us}
            for one in self._tokens.all()
        ]

    async def _submitted(self, name: str, order: Run) -> Any:
        """Under an id that follows from the command's, so that it is the same job however often."""
        body = {
            "inputs": [msgspec.to_builtins(one) for one in order.inputs],
            "outputs": [{"name": one} for one in order.outputs],
        }
        inputs, wanted = parsed({}, msgspec.json.encode(body))
        job = f"cmd-{hashlib.sha256(name.encode()).hexdigest()[:24]}"
        told, _ = await self._inference.jobs.submit(order.model, order.klass, job, inputs, wanted)
        return told

    def _checks(self) -> dict[str, tuple[str, Check]]:
        store, link, health = self._core.store, self._link, self._health

        def shown(what: Callable[[], Any]) -> Callable[[], Awaitable[Any]]:
            async def look() -> Any:
                return what()

            return look

        return {
            "conditions": ("What is wrong, and what to do.", shown(self._core.conditions.all)),
            "ledger": ("Produced, delivered, held, dropped.", store.ledger.by_epoch),
            "store": ("The store's file, its bounds and its commits.", health.views.store),
            "link": ("The link: broker, backlog, rates.", link.report.state),
            "domains": ("Each domain.", health.views.domains),
            "models": ("Each model.", health.views.models),
            "sources": ("Each source of sound.", health.views.sources),
            "accelerators": ("Each accelerator.", health.accelerators.state),
            "power": ("Power, energy and temperature.", health.power.state),
            "starts": ("Why the agent began.", shown(self._watchdog.starts.shown)),
            "clock": ("What time it is here.", shown(self._time)),
        }

    def _time(self) -> dict[str, Any]:
        wall_us = int(self._core.clock.wall() * 1e6)
        return {
            "wall_us": wall_us,
            "synchronised": self._core.known.sure,
            "known": self._core.known.said(),
        }

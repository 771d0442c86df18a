"""What looks after the parts, and says how they are."""

from agent import VERSION
from agent.compose.core import Core
from agent.compose.inference import InferenceParts
from agent.compose.link import LinkParts
from agent.compose.power import power
from agent.compose.watchdog import WatchdogParts
from agent.health.accelerators import AcceleratorWatch
from agent.health.clockwork import Clockwork
from agent.health.flash import Flash
from agent.health.letters import Letters
from agent.health.starts.starts import StartShown
from agent.health.status import Status
from agent.health.storage import Storage
from agent.host.accelerators.found import found
from agent.views import Sections, State, Views


class HealthParts:
    """Watches over store, disk, clock and accelerators; the status of all."""

    def __init__(
        self, core: Core, inference: InferenceParts, link: LinkParts, watchdog: WatchdogParts
    ) -> None:
        store, conditions, clock = core.store, core.conditions, core.clock
        self._store = store
        self.storage = Storage(store.ledger.balances, store.salvage.reports, conditions, clock)
        self.letters = Letters(store.outbox.buried, store.outbox.more_buried, conditions)
        self.flash = Flash(core.settings.store, store.wear, conditions, clock)
        self.clockwork = Clockwork(store.bindings.bind, conditions, clock)
        domains = inference.domains
        self.accelerators = AcceleratorWatch(
            *(found(), conditions, clock),
            calls=lambda: sum(domain.figures.done for domain in domains.all()),
            leave=domains.fell,
        )
        self.power = power(core, inference, watchdog, self.accelerators)
        self.views = Views(
            *(inference.domains, inference.scheduler, store, self.flash),
            *(inference.ears.sources, clock),
        )
        shown = self.views

        async def start() -> StartShown:
            return watchdog.starts.shown()

        sections = Sections(
            *(link.report.state, shown.domains, shown.models, shown.store, shown.sources),
            *(self.accelerators.state, self.power.state),
            start,
        )
        self.status = Status(
            lambda: {"device": core.device, "version": VERSION},
            conditions,
            clock,
            store.ledger.balances,
            sections._asdict(),
            core.beside("status.json"),
            State,
        )

    async def scrub(self) -> None:
        """Look for what the disk has damaged, for ever."""
        await self._store.scrub.run(self.storage.tell_damage)

"""What runs models, and who asks it."""

from pathlib import Path

from agent import config
from agent.audio.ears import Ears
from agent.audio.guests import Guests, Kept
from agent.compose.core import Core
from agent.confinement import Confinement
from agent.domain_conditions import DomainConditions
from agent.health.remembered import Remembered
from agent.inference.admission import Admission
from agent.inference.cache import Cache
from agent.inference.catalog import Catalog
from agent.inference.domains.choices import Choices
from agent.inference.domains.hold import Hold
from agent.inference.domains.renewed import Renewed
from agent.inference.domains.zygote import Zygote
from agent.inference.scheduler import Scheduler
from agent.inference.sequences import Sequences
from agent.inference.speech import Speech
from agent.jobs.calls import Calls
from agent.jobs.queue import Queue
from agent.jobs.runner import Runner
from agent.reload import Reload


class InferenceParts:
    """The domains; the scheduler, the jobs and the sources of sound, which ask them."""

    def __init__(self, core: Core) -> None:
        self._core = core
        settings = core.settings
        hears_with = settings.domains_all[settings.audio.domain].models[0]
        self.zygote, self.hold = Zygote(), Hold()
        self.catalog = Catalog(Path(settings.models.path), settings.models.signed_by)
        self.domains = Renewed(
            settings.domains_all,
            self.catalog,
            Choices(core.beside("models.json")),
            core.clock,
            lambda domain: self.told.changed(domain),
            Admission(core.clock).prove,
            Confinement(core.conditions),
            self.zygote,
            needed=hears_with,
            hold=self.hold,
        )
        self.told = DomainConditions(self.domains, settings.audio.domain, core.conditions)
        self.reload = Reload(settings, self.domains, core.conditions)
        cache, sequences = Cache(settings.models.cache_bytes_max), Sequences(core.clock)
        self.scheduler = Scheduler(self.domains, cache, sequences, core.clock)
        remembered = core.beside("remembered.json")
        self.remembered = Remembered(remembered, self.scheduler, self.domains, core.clock)
        calls = Calls(self.scheduler, self.domains)
        self.runner = Runner(core.store.jobs, calls, calls.where, core.clock)
        self.jobs = Queue(core.store.jobs, self.runner, calls.where)
        self._make_ears(settings.audio, hears_with)

    def _make_ears(self, settings: config.Audio, hears_with: str) -> None:
        """What hears: the sources of the configuration, and whoever sends sound."""
        store, clock = self._core.store, self._core.clock
        self.speech = Speech(self.domains.named(settings.domain), hears_with, clock)
        self.ears = Ears(settings, store.spool, self.speech, self._core.conditions, clock)
        kept = Kept(store.spool, store.takes, store.shelf, store.room_bytes)
        parts = (self.ears, kept, self.speech, clock)
        self.guests = Guests(settings, *parts, self._core.beside("incoming"))

    def ready(self) -> bool:
        """Whether every domain takes calls."""
        return all(domain.ready.is_set() for domain in self.domains.all())

"""What renews the models: new versions, their probation, and the commands to them."""

import logging
from pathlib import Path

from agent.commands.verbs.models import ModelVerbs
from agent.compose.core import Core
from agent.compose.inference import InferenceParts
from agent.errors import ModelError
from agent.inference.admission import Admission
from agent.updates.models import Models
from agent.updates.orders import Content
from agent.updates.probation import Probation
from agent.updates.repository import Repository
from agent.updates.trials import Trials
from agent.updates.watch import Parts

log = logging.getLogger("domain")


class ModelParts:
    """`restore` before the domains run; `probation` runs beside them."""

    def __init__(
        self, core: Core, inference: InferenceParts, content: Content | None = None
    ) -> None:
        """`content` fetches what the fleet publishes; None: files of the drop folder alone."""
        settings, clock = core.settings.models, core.clock
        root = Path(settings.path)
        self._repository = Repository(root, settings.signed_by, settings.free_bytes_min)
        prove = Admission(clock).prove
        parts = Parts(inference.domains, prove, settings.probation, inference.hold, clock)
        self.probation = Probation(Trials(core.beside("trials.json")), parts, core.conditions)
        models = Models(settings, self._repository, inference.domains, self.probation, content)
        self.verbs = ModelVerbs(models, core.store.journal.is_open)

    def restore(self, *, crashed: bool) -> None:
        """Go on from where the last run ended. `crashed`: it had ended unasked."""
        try:
            self._repository.clear()
        except ModelError as error:
            log.warning("%s", error)  # the next order to the models fails of it
        self.probation.restore(crashed=crashed)

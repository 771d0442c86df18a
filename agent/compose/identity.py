"""The device's certificate: who watches it, and how it is replaced."""

from pathlib import Path

from agent.commands.verbs.identity import Identity
from agent.compose.core import Core
from agent.compose.link import LinkParts
from agent.identity.pair import Pair
from agent.identity.rotation import Line, Rotation
from agent.identity.watch import Watch


class IdentityParts:
    """`verbs` are for the catalogue; `watch` is there where the device shows a certificate."""

    def __init__(self, core: Core, parts: LinkParts) -> None:
        settings = core.settings.link
        line = Line(
            lambda: parts.link.connected_since is not None,
            lambda: parts.link.restart("another certificate"),
            lambda: parts.link.state()["down_cause"] or "",
        )
        self.rotation = Rotation(settings, core.device, line, core.known, core.clock)
        self.verbs = Identity(self.rotation, core.device)
        self.watch = None
        if settings.cert_file is not None:
            self.watch = Watch(Pair(Path(settings.cert_file)), core.known, core.conditions)

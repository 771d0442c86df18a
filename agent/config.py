"""The configuration: what can be set, within which limits, and what holds when it is not.

Every number's key ends in its unit. `config/schema.json` is generated from these classes
(`python -m agent.config`); `config_file.py` reads the file and explains mistakes.
"""

import re
import socket
import sys
from typing import Literal

import msgspec
from msgspec import field
from msgspec.structs import replace

from agent.forms import DeviceId, Name
from agent.sections.audio import Audio as Audio
from agent.sections.audio import File as File
from agent.sections.audio import Folder as Folder
from agent.sections.audio import Loop as Loop
from agent.sections.audio import Microphone as Microphone
from agent.sections.audio import Segments as Segments
from agent.sections.audio import Source as Source
from agent.sections.commands import Commands as Commands
from agent.sections.doors import Api as Api
from agent.sections.doors import Tls as Tls
from agent.sections.inference import Domain as Domain
from agent.sections.inference import Instances as Instances
from agent.sections.inference import Jobs as Jobs
from agent.sections.inference import Models as Models
from agent.sections.inference import Probation as Probation
from agent.sections.link import Bundle as Bundle
from agent.sections.link import Hours as Hours
from agent.sections.link import Link as Link
from agent.sections.part import Part
from agent.sections.power import Power as Power
from agent.sections.power import PowerProfile as PowerProfile
from agent.sections.power import PowerRule as PowerRule
from agent.sections.site import HomeAssistant as HomeAssistant
from agent.sections.site import Sparkplug as Sparkplug
from agent.sections.store import Store as Store
from agent.sections.store import StreamRule as StreamRule
from agent.sections.updates import Updates as Updates
from agent.sections.watchdog import Gpio as Gpio
from agent.sections.watchdog import Watchdog as Watchdog


class Config(Part, frozen=True, kw_only=True):
    """The whole file. Relative paths start at the working directory.

    `device_id` names this device to the cloud and must never change; none: the host name.
    """

    link: Link
    device_id: DeviceId | None = None
    store: Store = field(default_factory=Store)
    audio: Audio = field(default_factory=Audio)
    domains: dict[Name, Domain] = field(default_factory=dict)
    models: Models = field(default_factory=Models)
    jobs: Jobs = field(default_factory=Jobs)
    api: Api = field(default_factory=Api)
    bundle: Bundle = field(default_factory=Bundle)
    commands: Commands = field(default_factory=Commands)
    watchdog: Watchdog = field(default_factory=Watchdog)
    power: Power = field(default_factory=Power)
    sparkplug: Sparkplug | None = None
    home_assistant: HomeAssistant | None = None
    updates: Updates = field(default_factory=Updates)
    log_level: Literal["debug", "info", "warning", "error"] = "info"

    @property
    def domains_all(self) -> dict[str, Domain]:
        """The domains, with the one that hears."""
        hears = self.audio.domain
        hearing = self.domains.get(hears, Domain(models=["speech"], class_="realtime"))
        hearing = replace(hearing, engine=hearing.engine or "speech")
        return {hears: hearing} | {n: one for n, one in self.domains.items() if n != hears}

    @property
    def device(self) -> str:
        """The device's id, fit for a topic."""
        return self.device_id or re.sub(r"[^A-Za-z0-9_.-]", "-", socket.gethostname())[:64]


def schema() -> bytes:
    """The JSON schema of the file, as `config/schema.json` holds it."""
    return msgspec.json.format(msgspec.json.encode(msgspec.json.schema(Config)), indent=2) + b"\n"


if __name__ == "__main__":
    sys.stdout.buffer.write(schema())

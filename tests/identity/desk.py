"""A command at hand, whose steps are in a file; a link that is up or is not; a clock that runs."""

from pathlib import Path
from typing import Any

from agent.clock import Clock
from agent.commands.verbs.identity import Identity, Install
from agent.config import Link
from agent.identity.pair import Pair
from agent.identity.rotation import Line, Rotation
from agent.known_time import KnownTime
from fleet.identity import authority
from fleet.identity.authority import Authority

DEVICE = "press-7"


class Noted:
    """As the journal has it: a step outlives the agent."""

    id = "c-1"

    def __init__(self, path: Path) -> None:
        self._path = path

    @property
    def step(self) -> str:
        return self._path.read_text() if self._path.exists() else ""

    async def note(self, step: str) -> None:
        fresh = self._path.with_suffix(".new")
        fresh.write_text(step)
        fresh.replace(self._path)

    async def tell(self, progress: float, message: str = "") -> None:
        pass


class Hasty(Clock):
    """Hours go by between two looks, so that no test waits for a window's end."""

    def __init__(self) -> None:
        super().__init__()
        self._now_s = 0.0

    def monotonic(self) -> float:
        self._now_s += 10_000.0
        return self._now_s


class Desk:
    """A device's identity in a folder, with an authority that knows it."""

    def __init__(
        self, folder: Path, *, is_up: bool = True, known: Clock | None = None, **settings: Any
    ) -> None:
        self.folder, self.is_up = folder, is_up
        self.path = folder / "device.pem"
        self.pair = Pair(self.path)
        self.begun_anew = 0
        self.known = KnownTime(folder / "known-time.json", known or Clock())
        files = {"ca_file": folder / "office" / "authority.crt", "cert_file": self.path}
        named = {name: str(path) for name, path in files.items()}
        self.settings = Link(ack_from="ingest", **(named | settings))
        line = Line(lambda: self.is_up, self._anew, lambda: "it is away")
        self.rotation = Rotation(self.settings, DEVICE, line, self.known, Hasty())
        self.verbs = {one.name: one for one in Identity(self.rotation, DEVICE).verbs()}

    async def _anew(self) -> None:
        self.begun_anew += 1

    @property
    def office(self) -> Authority:
        place = self.folder / "office"
        return Authority(place) if place.exists() else Authority.made(place, "Holdfast")

    def enrol(self) -> None:
        """A first certificate."""
        pem = self.office.issue(DEVICE, "device", authority.request(self.request()))
        self.pair.switch(pem, on_trial=False)
        self.pair.keep()

    def request(self) -> bytes:
        return self.pair.request(DEVICE).encode()

    def renewed(self) -> Install:
        """What the office answers to a request of the device's."""
        asked = authority.request(self.request())
        pem = self.office.issue(DEVICE, "device", asked, again=True)
        return Install(certificate=pem.decode())

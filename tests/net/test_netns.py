"""The same over a real network stack: packets dropped, refused and held up between namespaces."""

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.net.coordinator import LONG, Site
from tests.net.netns import Cable
from tests.outside import Mosquitto

MORE = 10 if LONG else 1


class FarMosquitto(Mosquitto):
    """A broker on the far side of a cable."""

    def __init__(self, folder: Path, cable: Cable) -> None:
        super().__init__(folder)
        text = self._config.read_text().replace(" 127.0.0.1", " 0.0.0.0", 1)
        self._config.write_text(text)
        self._far = cable.far
        self.command = [*cable.far, *self.command]
        self.url = f"mqtt://{cable.far_ip}:{self.port}"

    def _listens(self) -> bool:
        ask = ["bash", "-c", f"</dev/tcp/127.0.0.1/{self.port}"]
        return subprocess.run([*self._far, *ask], capture_output=True, check=False).returncode == 0


class FarSite(Site):
    """The device on the near side, broker and cloud on the far one."""

    def __init__(self, folder: Path, cable: Cable, records: int = 10**9) -> None:
        broker = FarMosquitto(folder, cable)
        super().__init__(
            folder, broker=broker, records=records, broker_url=broker.url, connect_timeout_s=2
        )
        self.device.command = [*cable.near, *self.device.command]
        for part in self.cloud.parts:
            part.command = [*cable.far, *part.command]


@pytest.fixture
def cable() -> Iterator[Cable]:
    with Cable() as laid:
        yield laid


def judged(site: Site) -> None:
    site.recover()
    assert site.faults() == []


def test_packets_are_lost_in_silence(tmp_path: Path, cable: Cable) -> None:
    with FarSite(tmp_path, cable) as site:
        for _ in range(MORE):
            site.stores(20)
            cable.drop()
            site.linked(up=False)
            site.makes(50)
            cable.mend()
            site.linked()
        judged(site)


def test_one_way_alone_is_lost(tmp_path: Path, cable: Cable) -> None:
    """What goes up arrives and is stored; no answer comes back."""
    with FarSite(tmp_path, cable) as site:
        site.stores(20)
        cable.drop(ways=("input",))
        site.linked(up=False)
        cable.mend()
        site.stores(20)
        judged(site)


def test_it_is_refused(tmp_path: Path, cable: Cable) -> None:
    with FarSite(tmp_path, cable) as site:
        for _ in range(MORE):
            site.stores(20)
            cable.refuse(site.broker.port)
            site.linked(up=False)
            site.makes(50)
            cable.mend()
            site.linked()
        judged(site)


def test_a_narrow_line_that_drops_what_is_too_much(tmp_path: Path, cable: Cable) -> None:
    with FarSite(tmp_path, cable, records=15 * MORE) as site:
        cable.narrow("200kbit")
        site.makes_all()
        judged(site)


def test_each_twentieth_packet_is_lost(tmp_path: Path, cable: Cable) -> None:
    with FarSite(tmp_path, cable) as site:
        cable.drop("numgen", "random", "mod", "100", "<", "5")
        site.stores(100 * MORE)
        judged(site)

"""The network matrix: everything a network, a broker, a cloud and a device do to each other.

Each test hurts something while records are made, lets all be well again, and asks the coordinator.
HOLDFAST_LONG=1 takes longer, and more seeds; HOLDFAST_SEED chooses where they begin.
"""

import random
from pathlib import Path

import pytest

from tests.fleet.cluster import Cluster
from tests.net.arrivals import Arrivals
from tests.net.clouds import Fleet
from tests.net.coordinator import LONG, SEED, Broker, Site
from tests.net.device import CLIPS
from tests.outside import Mosquitto

MORE = 15 if LONG else 1  # times as long
SATELLITE = {"latency_s": 0.6}
THREE_G = {"latency_s": 0.1, "rate_bytes_per_s": 25_000}
LINES = [pytest.param(SATELLITE, id="satellite"), pytest.param(THREE_G, id="3G")]
AGAIN_MAX = 0.1  # of the bytes on a thin line
PERSISTENT = "persistence true\npersistence_location {}/\nautosave_interval 1\n"


def judged(site: Site, *, heal: bool = True) -> None:
    """All is well again, and everything is where it should be."""
    site.recover(heal=heal)
    assert site.faults() == []


def offline(site: Site) -> None:
    """Nobody answers at the broker's address."""
    site.proxy.refusing = True
    site.proxy.cut()
    site.linked(up=False)


def test_offline_for_long(tmp_path: Path) -> None:
    with Site(tmp_path) as site:
        site.stores(50)
        offline(site)
        before = site.cloud.count()
        site.makes(500 * MORE)
        assert site.cloud.count() - before < 500 * MORE, "it was not offline"
        judged(site)


def thin(folder: Path, records: int, **line: float) -> None:
    """So many records over such a line from the first moment on; hardly any of it comes again."""
    site = Site(folder, records=4 * records if LONG else records)
    site.proxy.slow(**line)
    with site, Arrivals(site.broker.port) as arrivals:
        site.makes_all()
        judged(site, heal=False)
        print(f"{arrivals.again_bytes} of {arrivals.bytes} bytes came again")
        assert arrivals.again_bytes <= AGAIN_MAX * arrivals.bytes


@pytest.mark.parametrize("line", LINES)
def test_over_a_slow_line(tmp_path: Path, line: dict[str, float]) -> None:
    """The whole of it goes over the slow line, to the last acknowledgement, and goes once."""
    thin(tmp_path, 25, **line)


@pytest.mark.parametrize("line", LINES if LONG else LINES[:1])
def test_live_records_do_not_wait_behind_the_backlog(
    tmp_path: Path, line: dict[str, float]
) -> None:
    """In one stream a record of now is there before the last one of the time before the link."""
    with Site(tmp_path, rest_s=0.1, live_s=1) as site:
        offline(site)
        first = site.last_seqs().get(CLIPS, 0)
        site.until(lambda: site.last_seqs().get(CLIPS, 0) >= first + 8 * MORE, "a backlog")
        backlog = site.last_seqs()[CLIPS]
        with Arrivals(site.broker.port) as arrivals:
            site.proxy.slow(**{"rate_bytes_per_s": 50_000, **line})
            site.proxy.refusing = False
            site.until(lambda: True in arrivals.beyond(CLIPS, backlog), "a record of now is there")
            judged(site)
    later = arrivals.beyond(CLIPS, backlog)
    assert False in later[later.index(True) :], "all of the backlog came first"


def test_a_line_that_flaps(tmp_path: Path) -> None:
    chance = random.Random(SEED)
    with Site(tmp_path) as site:
        for _ in range(5 * MORE):
            site.linked()
            site.passes(chance.choice([1, 1_000, 50_000, 200_000]))
            site.proxy.cut()
        judged(site)


@pytest.mark.parametrize("persistent", [False, True], ids=["forgetful", "persistent"])
def test_the_broker_is_killed(tmp_path: Path, persistent: bool) -> None:
    broker = Mosquitto(tmp_path, extra=PERSISTENT.format(tmp_path) if persistent else "")
    with Site(tmp_path, broker=broker) as site:
        for _ in range(2 * MORE):
            site.stores(40)
            site.broker.kill()
            site.makes(40)
            site.broker.start()
            site.linked()
        judged(site)


def test_the_ingest_is_down_for_long(tmp_path: Path) -> None:
    with Site(tmp_path) as site:
        site.stores(20)
        site.cloud.kill()
        site.makes(200 * MORE)
        site.holds("ack_missing")
        judged(site)


def test_the_ingest_is_killed(tmp_path: Path) -> None:
    chance = random.Random(SEED)
    with Site(tmp_path) as site:
        for _ in range(3 * MORE):
            site.stores(chance.randint(1, 100))
            site.cloud.kill()
            site.makes(chance.randint(1, 40))
            site.cloud.start()
        judged(site)


def test_two_ingests_side_by_side_are_killed(tmp_path: Path, cluster: Cluster) -> None:
    """They share a subscription and a PostgreSQL; one is killed, the other, and both."""
    chance = random.Random(SEED)
    with Site(tmp_path, database=cluster.new()) as site:
        for turn in range(3 * MORE):
            site.stores(chance.randint(1, 100))
            killed = site.cloud.parts[turn % 3 : turn % 3 + 1] or site.cloud.parts
            for part in killed:
                part.kill()
            site.makes(chance.randint(1, 40))
            site.cloud.start()
        judged(site)


def test_the_database_is_killed(tmp_path: Path, cluster: Cluster) -> None:
    with Site(tmp_path, database=cluster.new()) as site:
        for _ in range(MORE):
            site.stores(40)
            cluster.kill()
            site.makes(40)
            cluster.start()
        judged(site)


def test_the_device_is_killed(tmp_path: Path) -> None:
    chance = random.Random(SEED)
    with Site(tmp_path) as site:
        for _ in range(3 * MORE):
            site.makes(chance.randint(20, 200))
            site.device.kill()
            site.device.start()
        site.stores(20)
        judged(site)


def test_half_open(tmp_path: Path) -> None:
    """The other side is gone and nobody says so: the device has to find out."""
    with Site(tmp_path) as site:
        for _ in range(MORE):
            site.stores(20)
            tried = site.proxy.accepted
            site.proxy.swallow()
            site.until(lambda n=tried: site.proxy.accepted > n, "it found out, and came back")
            site.linked()
        judged(site)


def test_a_hole_that_swallows_connections(tmp_path: Path) -> None:
    with Site(tmp_path, connect_timeout_s=1) as site:
        site.stores(20)
        site.proxy.black_hole = True
        site.proxy.cut()
        site.linked(up=False)
        tried = site.proxy.accepted
        site.until(lambda: site.proxy.accepted >= tried + 3, "it tries again and again")
        site.makes(20)
        judged(site)


def test_reset_in_the_middle_of_a_packet(tmp_path: Path) -> None:
    chance = random.Random(SEED)
    with Site(tmp_path) as site:
        for _ in range(8 * MORE):
            site.linked()
            tried = site.proxy.accepted
            site.proxy.reset_after(chance.choice([0, 1, 3, 100, 5_000, 100_000]))
            site.until(lambda n=tried: site.proxy.accepted > n, "it was reset and came back")
        judged(site)


def test_a_piece_takes_longer_than_an_answer_may(tmp_path: Path) -> None:
    """On a line that is very thin, what is sent has to be small enough to be answered in time."""
    thin(tmp_path, 10, rate_bytes_per_s=12_000)


class Mixture:
    """Mishaps by seed, each with the way back."""

    def __init__(self, site: Site, seed: int) -> None:
        self.site = site
        self.chance = random.Random(seed)

    def step(self) -> None:
        """One mishap, after a while of which nothing is promised, and something is made."""
        line = [self.cut, self.offline, self.half_open, self.reset, self.slow, self.heal]
        mishap = self.chance.choice([*line, self.kill_broker, self.kill_cloud, self.kill_device])
        print(f"  {mishap.__name__}")
        mishap()
        self.site.makes(self.chance.randint(1, 60))

    def cut(self) -> None:
        self.site.proxy.cut()

    def offline(self) -> None:
        self.site.proxy.refusing = not self.site.proxy.refusing
        self.site.proxy.cut()

    def half_open(self) -> None:
        self.site.proxy.swallow()

    def reset(self) -> None:
        self.site.proxy.reset_after(self.chance.randint(0, 50_000))

    def slow(self) -> None:
        rate = self.chance.choice([None, 25_000, 200_000])
        self.site.proxy.slow(self.chance.choice([0.0, 0.05, 0.6]), rate)

    def heal(self) -> None:
        self.site.proxy.heal()

    def kill_broker(self) -> None:
        self._kill(self.site.broker)

    def kill_cloud(self) -> None:
        self._kill(self.site.cloud)

    def kill_device(self) -> None:
        self.site.device.kill()
        self.site.device.start()

    def _kill(self, part: Broker | Fleet) -> None:
        """Down now; and up again, now or when all recovers."""
        if part.dead():
            part.start()
        else:
            part.kill()


@pytest.mark.parametrize("seed", range(SEED, SEED + (20 if LONG else 1)))
def test_a_mixture(tmp_path: Path, seed: int) -> None:
    persistent = PERSISTENT.format(tmp_path) if seed % 2 else ""
    with Site(tmp_path, seed=seed, broker=Mosquitto(tmp_path, extra=persistent)) as site:
        mixture = Mixture(site, seed)
        for _ in range(10 * MORE):
            mixture.step()
        judged(site)

"""Blobs by PUT with everything being killed on the way: agent, Mosquitto, ingest, store.

The ledger balances on both sides, and each blob is what was accepted, wherever it lies.
"""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.listener import Listener
from tests.net.clouds import Name, Sqlite, Stored
from tests.net.coordinator import DEVICE, LONG, Site
from tests.net.device import ALARMS, READINGS
from tests.object_store import BUCKET, Apart, options
from tests.outside import until

RECORDS = 200 if LONG else 60
ROUNDS = 10 if LONG else 1


class Put(Sqlite):
    """The ingest with an object store."""

    def __init__(self, folder: Path, port: int, objects: Apart) -> None:
        super().__init__(folder, port, DEVICE)
        self._objects = objects
        self.parts[0].command += options(folder, objects.store.url)

    def start(self) -> None:
        """Start it and wait until it listens: what is sent to nobody comes again late."""
        before = self._connected()
        super().start()
        until(lambda: self._connected() > before, "the ingest connects")

    def _connected(self) -> int:
        log = self.parts[0].log
        return log.read_text().count("connected to") if log.exists() else 0

    def stored(self, name: Name) -> list[Stored]:
        """What is stored whole of a stream: of what was put, the object, and no piece."""
        places = dict(
            self._ask(
                f"SELECT seq, place FROM blobs WHERE stream = (SELECT s.id {self.FIND})"
                " AND settled AND place != ''",
                (self._device, *name),
            )
        )
        found = {one.seq: one for one in super().stored(name)}
        assert not found.keys() & places.keys(), "some lie at two places"
        rows = self._ask(
            f"SELECT seq, body FROM records WHERE stream = (SELECT s.id {self.FIND})",
            (self._device, *name),
        )
        for seq, body in rows:
            if seq in places:
                found[seq] = Stored(seq, body, self._object(places[seq]))
        return [found[seq] for seq in sorted(found)]

    def _object(self, place: str) -> bytes:
        key = place.removeprefix(f"{self._objects.store.url}/{BUCKET}/")
        return self._objects.store.objects[key]

    def in_pieces(self) -> int:
        """How many blobs lie in the database."""
        return int(self._ask("SELECT count(DISTINCT stream * 1000000 + seq) FROM pieces")[0][0])

    def put(self) -> int:
        """How many lie in the object store."""
        return int(self._ask("SELECT count(*) FROM blobs WHERE settled AND place != ''")[0][0])


@contextlib.contextmanager
def putting(folder: Path, objects: Apart, **settings: Any) -> Iterator[tuple[Site, Put]]:
    """A site whose blobs go by PUT to these objects."""
    objects.start()
    try:
        site = Site(folder, blobs_by="put", **settings)
        site.cloud = cloud = Put(folder, site.broker.port, objects)
        with site:
            yield site, cloud
    finally:
        objects.kill()


def test_all_blobs_arrive_by_put(tmp_path: Path) -> None:
    """Though one URL has expired when it is used, and one object is not what was sent."""
    objects = Apart()
    objects.store.late_s, objects.store.spoils = [901.0], 1
    with (
        putting(tmp_path, objects, records=RECORDS, ack_timeout_s=30) as (site, cloud),
        Listener(site.broker.port, "+/+/+/blob/#") as pieces,
    ):
        site.makes_all()
        site.recover()
        assert site.faults() == []
        assert len(pieces.got) == cloud.in_pieces() == 0
        assert cloud.put() == len(objects.store.objects) > 0
        answers = objects.store.statuses_of("PUT")
        assert sorted(answers) == [200] * (cloud.put() + 1) + [403]


@pytest.mark.parametrize("trouble", ["dead", "lies"])
def test_blobs_go_in_pieces_where_the_store_does_not_serve(tmp_path: Path, trouble: str) -> None:
    objects = Apart()
    if trouble == "lies":  # what it holds is not what it was given, and the cloud sees that
        objects.store.spoils = 10**9
    with putting(tmp_path, objects, records=RECORDS) as (site, cloud):
        if trouble == "dead":
            objects.kill()
        site.holds("blobs_in_pieces")
        site.makes_all()
        site.recover()
        assert site.faults() == []
        assert cloud.put() == 0
        assert cloud.in_pieces() > 0


def test_device_and_ingest_are_killed_in_the_middle_of_a_put(tmp_path: Path) -> None:
    objects = Apart()
    with putting(tmp_path, objects, rest_s=0.02, ack_timeout_s=12) as (site, cloud):
        for _ in range(ROUNDS):
            for victim in (site.device, cloud):
                objects.hold(1)
                site.until(objects.store.holding.is_set, "a PUT is held")
                victim.kill()
                objects.let_go()
                victim.start()
                site.linked()
                site.stores(20)
        site.recover()
        assert site.faults() == []
        assert cloud.put() > 0


def test_what_has_no_blob_does_not_wait_for_a_put(tmp_path: Path) -> None:
    objects = Apart()
    objects.hold(1)  # before there is a device, which makes records from its start
    with putting(tmp_path, objects, records=60, ack_timeout_s=60) as (site, cloud):
        site.makes_all()
        site.until(objects.store.holding.is_set, "a PUT is held")
        made = site.last_seqs()

        def stored(stream: str) -> list[int]:
            names = [name for name in cloud.names() if name[1] == stream]
            return [one.seq for name in names for one in cloud.stored(name)]

        for stream in (ALARMS, READINGS):
            site.until(
                lambda stream=stream: stored(stream) == [*range(1, made[stream] + 1)],
                f"{stream} is stored",
            )
        assert not objects.store.statuses_of("PUT"), "no PUT was held all the time"
        assert not cloud.in_pieces()
        objects.let_go()
        site.recover()
        assert site.faults() == []

"""Bundles of a real store, made and taken apart."""

import io
from pathlib import Path

from agent import config
from agent.clock import Clock
from agent.commands.catalogue import Catalogue
from agent.commands.desk import Desk
from agent.commands.trust import Rules
from agent.known_time import KnownTime
from agent.protocol import ack, batch, blob, bundle, signing
from agent.records import Drop
from agent.store.store import Store
from agent.sync.stick.bundle import Bundles
from agent.sync.stick.export import Export

FLEET, STRANGER = signing.Key(bytes(32)), signing.Key(bytes(range(32)))
PART_BYTES = 1 << 30


def desk(store: Store, folder: Path, **settings: object) -> Bundles:
    part = config.Bundle(
        key_file=str(folder / "device.key"),
        **{"fleet_keys": [FLEET.public], **settings},  # type: ignore[arg-type]
    )
    return Bundles("d", part, store.held, store.outbox, Clock(), idle_desk(store))


def idle_desk(store: Store) -> Desk:
    """One that takes no command."""
    rules, known = Rules("d", "never", ()), KnownTime(store.path.with_name("time"), Clock())
    return Desk(store.journal, Catalogue(()), rules, known, Clock())


async def fetched(export: Export, number: int = 1) -> bytes:
    return b"".join([made async for made in export.part(number)])


async def all_parts(export: Export) -> list[bytes]:
    parts = []
    while number := export.state()["part_next"]:
        parts.append(await fetched(export, number))
        export.keep(number)
    return parts


class Cargo:
    """What bundles carry, taken apart."""

    def __init__(self, *parts: bytes) -> None:
        self.sealed = [bundle.verify(io.BytesIO(part)) for part in parts]
        self.records: dict[tuple[str, int], bytes] = {}
        self.drops: dict[str, list[Drop]] = {}
        self.blobs: dict[tuple[str, int], bytes] = {}
        self.order: list[str] = []  # of streams
        for part in parts:
            for kind, payload in bundle.frames(io.BytesIO(part)):
                self._piece(payload) if kind == bundle.PIECE else self._batch(payload)

    def _batch(self, payload: bytes) -> None:
        header, events = batch.decode(payload)
        assert header.device == "d"
        for event in events:
            key = (header.stream, event.sequence)
            assert len(self.blobs.get(key, b"")) == event.blobsize, "blobs go first"
            self.records[key] = bytes(event.data)
        told = self.drops.setdefault(header.stream, [])
        told += [drop for drop in header.dropped if drop not in told]
        if header.stream not in self.order:
            self.order.append(header.stream)

    def _piece(self, payload: bytes) -> None:
        header, content = blob.decode(payload)
        key = (header.stream, header.seq)
        assert header.start == len(self.blobs.setdefault(key, b""))
        self.blobs[key] += content


def ack_bundle(word: ack.Ack, device: str = "d", key: signing.Key = FLEET) -> bytes:
    header = bundle.Header(
        kind="ack",
        device=device,
        export="0123456789abcdef",
        part=1,
        by=key.public,
        created="2026-01-01T00:00:00+00:00",
    )
    writer = bundle.Writer(header, key)
    content = writer.begin() + writer.frame(bundle.ACK, ack.encode(word))
    return content + writer.end(bundle.Footer(frames=1, records=0, blob_bytes=0, covers={}))

"""Bundles at the cloud's end: what a stick brings is stored, and an ack bundle goes back.

Limits  : STEP_BYTES of a bundle in one transaction; a copy of each file lies in the folder for
          temporary files while it is imported, without a name, decrypted if need be; MISSING_MAX
          missing parts of an export are told.
Format  : agent/protocol/bundle.py; tables bundle_keys, bundle_parts (sql/0002.sql).
Recovery: a file is copied and verified to its end before anything of it is stored, so that a stick
          may be pulled at any time. What was stored before a crash is known when the file is
          imported again: that may be done any number of times. An ack bundle has its name only when
          all of it is on the disk.
"""

import asyncio
import tempfile
from collections.abc import Awaitable, Callable, Iterator, Sequence
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

from msgspec import Struct

from agent.clock import Clock
from agent.errors import BundleError, ProtocolError
from agent.protocol import ack, bundle, envelope, signing
from agent.protocol.commands import Result
from agent.protocol.topics import Topics
from agent.records import Range
from fleet.stick.ends import STREAM, ends
from fleet.stick.notes import notes
from fleet.stick.stick import verified, write
from fleet.store.cloud import Arrival, Cloud, Verdict
from fleet.store.database import Unfit

STEP_BYTES = 8 << 20
MISSING_MAX = 1000  # that are told, of an export
CARRIES = {"ack": "acks", "commands": "commands"}


class Origin(Struct, frozen=True):
    """Whose a batch or a piece is: what both headers say."""

    device: str
    stream: str


class Imported(Struct, frozen=True):
    """What became of a file.

    `verdict` is `stored`, or `known` when the same file came before. `missing` are parts of its
    export that have not come yet, the lowest if they are many, `last_known` whether its last part
    has come. `notes` are for people.
    """

    file: str
    verdict: str
    device: str
    export: str
    part: int
    digest: str
    records_new: int
    records_known: int
    blobs_done: int
    refused: int
    missing: list[int]
    last_known: bool
    notes: list[str]


class Sticks:
    """Imports bundles into an open Cloud, and answers them."""

    def __init__(
        self,
        cloud: Cloud,
        identities: Sequence[Any],
        clock: Clock,
        hear: Callable[[Sequence[Result]], Awaitable[None]] | None = None,
    ) -> None:
        """`identities` are age's, for bundles that are encrypted. `hear` is told how commands
        ended, each time that a file which says so is imported, once that is stored."""
        self._cloud = cloud
        self._hear = hear
        self._identities = identities
        self._clock = clock

    async def trust(self, device: str, key: str) -> None:
        """Believe what `key` signs for a device. Raises StoreError."""
        async with self._cloud.database.begin() as transaction:
            await transaction.execute(
                "INSERT INTO bundle_keys (device, key, since_us) VALUES ($1, $2, $3)"
                " ON CONFLICT (device, key) DO NOTHING",
                device,
                key,
                self._now_us(),
            )

    async def distrust(self, device: str, key: str) -> bool:
        """Believe it no more; whether it was believed. Raises StoreError."""
        async with self._cloud.database.begin() as transaction:
            found = await transaction.fetch(
                "DELETE FROM bundle_keys WHERE device = $1 AND key = $2 RETURNING key", device, key
            )
        return bool(found)

    async def take(self, path: Path) -> Imported:
        """Import a file. Raises BundleError, with nothing of it stored; StoreError.

        Of one whose verdict is `unfit`, as the database cannot take it, some may be stored.
        """
        with tempfile.TemporaryFile() as copy:
            sealed = await asyncio.to_thread(self._verified, path, copy)
            try:
                return await self._take(path, sealed, copy)
            except Unfit as error:
                raise BundleError(
                    f"the database cannot take what it says: {error}",
                    "it is not acknowledged, and stays on the device; look at that device",
                    "unfit",
                ) from error

    async def _take(self, path: Path, sealed: bundle.Sealed, copy: BinaryIO) -> Imported:
        await self._check_key(sealed.header)
        verdict = await self._store(sealed.header, copy)
        refused, unread = await self._tell(sealed.header, copy)
        known = await self._note(sealed)
        missing, last_known = await self._missing(sealed.header)
        return Imported(
            file=str(path),
            verdict="known" if known else "stored",
            device=sealed.header.device,
            export=sealed.header.export,
            part=sealed.header.part,
            digest=sealed.digest,
            records_new=verdict.records_new,
            records_known=verdict.records_known,
            blobs_done=verdict.blobs_done,
            refused=verdict.refused,
            missing=missing,
            last_known=last_known,
            notes=notes(
                *(sealed.header, missing, verdict, unread, refused),
                known=known,
                last_known=last_known,
            ),
        )

    def _verified(self, path: Path, copy: BinaryIO) -> bundle.Sealed:
        """Copy a file, and read the copy to its end."""
        sealed = verified(path, copy, self._identities)
        if sealed.header.kind != "data":
            raise BundleError(
                f"the bundle carries {CARRIES[sealed.header.kind]} for device "
                f"{sealed.header.device}, not records",
                "take it to the device: `holdfast bundle import`",
                "not_data",
            )
        for _ in _arrivals(self._cloud.prefix, sealed.header, copy):
            pass  # one that is not this device's is found before any is stored
        return sealed

    async def _check_key(self, header: bundle.Header) -> None:
        async with self._cloud.database.begin() as transaction:
            rows = await transaction.fetch(
                "SELECT device FROM bundle_keys WHERE key = $1 ORDER BY device", header.by
            )
        devices = [device for (device,) in rows]
        if header.device in devices:
            return
        whose = f"; it is known as that of {', '.join(devices)}" if devices else ""
        raise BundleError(
            f"the bundle of device {header.device} is signed by {header.by}, "
            f"which is not known as its key{whose}",
            "compare it with what `holdfast bundle key` says on the device; if it is the same: "
            f"holdfast-fleet bundle trust {header.device} {header.by}",
            "wrong_device" if devices else "unknown_key",
        )

    async def _store(self, header: bundle.Header, copy: BinaryIO) -> Verdict:
        """Store its frames, so many in a transaction."""
        total, step, size = Verdict(), list[Arrival](), 0
        for arrival in _arrivals(self._cloud.prefix, header, copy):
            step.append(arrival)
            size += len(arrival.payload)
            if size >= STEP_BYTES:
                total, step, size = total.plus(await self._cloud.store(step)), [], 0
        return total.plus(await self._cloud.store(step))

    async def _tell(self, header: bundle.Header, copy: BinaryIO) -> tuple[list[Result], int]:
        """Tell how commands ended; those that were refused, and how many of the records cannot be
        read."""
        refused, unread = list[Result](), 0
        if self._hear is None:
            return refused, unread
        up = Topics(self._cloud.prefix, header.device).up(STREAM)
        for arrival in _arrivals(self._cloud.prefix, header, copy):
            if arrival.topic != up:
                continue
            found, odd = await asyncio.to_thread(ends, header.device, arrival.payload)
            if found:
                await self._hear(found)
            refused += [one for one in found if one.state == "refused"]
            unread += odd
        return refused, unread

    async def _note(self, sealed: bundle.Sealed) -> bool:
        """Remember that this part has come; whether it had come before, as it is."""
        header = sealed.header
        async with self._cloud.database.begin() as transaction:
            before = await transaction.fetch(
                "SELECT digest FROM bundle_parts WHERE device = $1 AND export = $2 AND part = $3",
                *(header.device, header.export, header.part),
            )
            await transaction.execute(
                "INSERT INTO bundle_parts"
                " (device, export, part, digest, follows, more, imported_us)"
                " VALUES ($1, $2, $3, $4, $5, $6, $7) ON CONFLICT (device, export, part)"
                " DO UPDATE SET digest = excluded.digest, follows = excluded.follows,"
                " more = excluded.more",
                *(header.device, header.export, header.part, sealed.digest, header.follows),
                *(sealed.footer.more, self._now_us()),
            )
        return [digest for (digest,) in before] == [sealed.digest]

    async def _missing(self, header: bundle.Header) -> tuple[list[int], bool]:
        """The lowest parts of an export that have not come, as far as known, and if its last has.

        A part whose successor follows another digest than its own has come in a former form.
        """
        async with self._cloud.database.begin() as transaction:
            rows = await transaction.fetch(
                "SELECT part, digest, follows, more FROM bundle_parts"
                " WHERE device = $1 AND export = $2",
                *(header.device, header.export),
            )
        digests = {part: digest for part, digest, _, _ in rows}
        wanted = {part - 1: follows for part, _, follows, _ in rows if part > 1}
        lasts = [part for part, _, _, more in rows if not more]
        missing = (
            part
            for part in range(1, max(digests) + 1)
            if part not in digests or wanted.get(part, digests[part]) != digests[part]
        )
        return list(islice(missing, MISSING_MAX)), bool(lasts)

    async def answer(self, done: Imported, folder: Path, key: signing.Key) -> Path:
        """Write the ack bundle of a device, as the database has it now; where it is.

        Raises BundleError when it cannot be written, StoreError.
        """
        word = await self._cloud.ack(done.device)
        content = self._ack_bundle(done, word, key)
        path = folder / f"holdfast-{done.device}-{done.export}.ack.hfb"
        try:
            await asyncio.to_thread(write, path, content)
        except OSError as error:
            raise BundleError(
                f"{path}: the ack bundle cannot be written: {error.strerror or error}",
                "what came is stored; make room there, or import it again with --ack-dir FOLDER",
                "no_ack",
            ) from error
        return path

    def _ack_bundle(self, done: Imported, word: ack.Ack, key: signing.Key) -> bytes:
        header = bundle.Header(
            kind="ack",
            device=done.device,
            export=done.export,
            part=done.part,
            by=key.public,
            created=datetime.fromtimestamp(self._clock.wall(), UTC).isoformat(timespec="seconds"),
            epochs=sorted(word.epochs),
            follows=done.digest,
        )
        covers = {
            epoch: {name: Range(1, of.mark) for name, of in streams.items() if of.mark}
            for epoch, streams in word.epochs.items()
        }
        writer = bundle.Writer(header, key)
        made = writer.begin() + writer.frame(bundle.ACK, ack.encode(word))
        return made + writer.end(bundle.Footer(frames=1, records=0, blob_bytes=0, covers=covers))

    def _now_us(self) -> int:
        return int(self._clock.wall() * 1e6)


def _arrivals(prefix: str, header: bundle.Header, copy: BinaryIO) -> Iterator[Arrival]:
    """The frames of a bundle as messages of its device, each from the topic it would come by."""
    copy.seek(0)
    topics = Topics(prefix, header.device)
    for kind, payload in bundle.frames(copy):
        try:
            origin, _ = envelope.unseal(payload, Origin)
        except ProtocolError as error:
            raise _foreign(header, str(error)) from error
        if origin.device != header.device:
            raise _foreign(header, f"it carries what says it is of device {origin.device!r}")
        door = topics.up if kind == bundle.BATCH else topics.blob
        yield Arrival(door(origin.stream), payload)
    copy.seek(0)


def _foreign(header: bundle.Header, why: str) -> BundleError:
    return BundleError(
        f"the bundle of device {header.device} was signed with wrong content: {why}",
        "nothing of it was taken; look at that device",
        "damaged",
    )

"""The way out and back over an air gap: records leave in bundles; acks and commands come in them.

An export copies what is held, and changes nothing. Made twice, it holds the same records again, and
the far side stores them once. Only an ack bundle, which a key of the fleet has signed for this
device, lets records be purged.
"""

import asyncio
import io
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from agent.clock import Clock
from agent.config import Bundle as Settings
from agent.errors import BundleError, NotThere, ProtocolError
from agent.protocol import ack, bundle, command_bundle, signing
from agent.protocol.commands import Door, Order, Result, Unread
from agent.records import Range
from agent.shown import AckTaken
from agent.store.held import Held
from agent.store.leases import Name
from agent.store.outbox import Outbox
from agent.sync.stick.export import Export
from agent.words import counted

log = logging.getLogger("bundle")


class Desk(Protocol):
    """Where commands are ordered; agent/commands/desk.py says what each means and raises."""

    async def order(self, order: Order, door: Door) -> Result: ...  # noqa: D102
    async def unread(self, error: Unread, door: Door) -> Result: ...  # noqa: D102


class Bundles:
    """The device's side of the air gap."""

    def __init__(
        self,
        device: str,
        settings: Settings,
        held: Held,
        outbox: Outbox,
        clock: Clock,
        desk: Desk,
    ) -> None:
        """`desk` takes the orders of a bundle of commands."""
        self._device = device
        self._key_file = Path(settings.key_file)
        self._fleet_keys = settings.fleet_keys
        self._held = held
        self._outbox = outbox
        self._clock = clock
        self._desk = desk
        self._export: Export | None = None

    async def key(self) -> signing.Key:
        """The device's key, made on first use. Raises ConfigError."""
        return await asyncio.to_thread(signing.Key.kept, self._key_file)

    async def begin(self, part_bytes: int) -> Export:
        """A new export of all that is held now and may be sent. Raises ConfigError, StoreError."""
        key, extents = await self.key(), await self._held.extents()
        self._export = Export(
            self._held, extents, part_bytes, self._device, key, self._clock.wall()
        )
        return self._export

    def export(self, named: str | None = None) -> Export:
        """The export that was begun last. Raises NotThere, also when it is not the one `named`."""
        if self._export is None or named not in (None, self._export.id):
            raise NotThere(
                f"there is no export {named or ''}".rstrip(),
                "begin one: `holdfast bundle export`; what it held before it holds again",
            )
        return self._export

    async def take(self, content: bytes) -> AckTaken:
        """Purge what an ack bundle says is stored, or order what is in one of commands.

        Raises BundleError when it is not believed, or not for this device: then nothing was
        changed. Raises StoreError.
        """
        header = await asyncio.to_thread(self._believed, content)
        if header.kind == "commands":
            return await self._ordered(header, content)
        word = _word(content)
        delivered, refused = 0, []
        for epoch, streams in word.epochs.items():
            for stream, of in streams.items():
                spans = [Range(1, of.mark), *of.ranges]
                try:
                    name = epoch, stream
                    # An ack names every dead letter that is not stored: what it knows else came.
                    settled = await self._outbox.acknowledge(
                        name, spans, of.dead, carried=spans, tail=of.tail
                    )
                    await self._bury(name, of.refused)
                except ProtocolError as error:
                    refused.append(str(error))
                    continue
                delivered += settled.delivered
        said = counted(delivered, "record")
        log.info("export %s: %s acknowledged by a bundle", header.export, said)
        for why in refused:
            log.warning("export %s: %s", header.export, why)
        return {
            "verdict": "contradiction" if refused else "taken" if delivered else "nothing_new",
            "export": header.export,
            "created": header.created,
            "by": header.by,
            "delivered": delivered,
            "refused": refused,
            "commands": [],
        }

    async def _ordered(self, header: bundle.Header, content: bytes) -> AckTaken:
        """Each command as the other doors take it. Raises BundleError, StoreError: then some of
        them may be ordered already, and the same bundle has no second effect."""
        results = []
        for one in command_bundle.read(content):
            if isinstance(one, Unread):
                results.append(await self._desk.unread(one, "bundle"))
            else:
                results.append(await self._desk.order(Order(one, header.by), "bundle"))
        log.info("%s in a bundle of %s", counted(len(results), "command"), header.created)
        return {
            "verdict": "taken",
            "export": header.export,
            "created": header.created,
            "by": header.by,
            "delivered": 0,
            "refused": [],
            "commands": [
                {"id": one.id, "name": one.name, "state": one.state, "message": one.message}
                for one in results
            ],
        }

    async def _bury(self, name: Name, refused: Sequence[Range]) -> None:
        """The cloud cannot store these: they are dead letters, where they are held."""
        for span in refused:
            await self._outbox.bury_span(name, span, "refused by the ingest")

    def _believed(self, content: bytes) -> bundle.Header:
        header = bundle.opened(io.BytesIO(content))
        _check_kind(header)  # first: of a bundle of data only the beginning may have come
        if not self._fleet_keys:
            raise BundleError(
                "no fleet key is known here, so no bundle can be believed",
                "put what `holdfast-fleet bundle key` prints into bundle.fleet_keys, and restart",
                "no_fleet_key",
            )
        bundle.verify(io.BytesIO(content))
        if header.by not in self._fleet_keys:
            raise BundleError(
                f"the bundle is signed by {header.by}, which is no key of this fleet",
                "if it is one (`holdfast-fleet bundle key`), add it to bundle.fleet_keys",
                "stranger",
            )
        if header.device != self._device:
            raise BundleError(
                f"the bundle is for device {header.device}; this is {self._device}",
                "take it to that device",
                "wrong_device",
            )
        return header


def _word(content: bytes) -> ack.Ack:
    """The ack in a bundle that is believed. Raises BundleError."""
    try:
        (word,) = (ack.decode(payload) for _, payload in bundle.frames(io.BytesIO(content)))
    except (ProtocolError, ValueError) as error:  # signed, and yet no ack or not one
        raise BundleError(
            f"the ack bundle cannot be read: {error}", "update Holdfast here", "damaged"
        ) from error
    return word


def _check_kind(header: bundle.Header) -> None:
    if header.kind == "data":
        raise BundleError(
            f"the bundle carries data of device {header.device}, not acks",
            "import it in the cloud: `holdfast-fleet bundle import`; take the ack bundle it writes",
            "not_an_ack",
        )

"""Blobs by HTTP PUT, each to a URL that the cloud grants (protocol/grants.py).

The device asks; where the cloud does not see the object yet it grants a URL; the device puts the
blob there and asks again, until the cloud says that it has seen it. What is refused, fails
`TRIES_MAX` times or makes no progress goes in pieces over MQTT, and a condition says so. Then all
blobs do for `REST_S`; after that one of them alone finds out whether the way is free again, so that
a store that hangs holds up no more than that one. A PUT that was cut begins again.

Limits  : of each `put` that runs (the uplink's leases: 35 at most), a piece of the blob and an ask
          are in memory.
Recovery: nothing is kept. After a restart the device asks anew, and hears `stored` where the
          object had arrived.
"""

import asyncio
import hashlib
import logging
from collections.abc import AsyncIterator
from typing import Self

from agent.clock import Clock
from agent.config import Link as Settings
from agent.errors import LinkError, ProtocolError
from agent.health.conditions import Conditions
from agent.protocol import grants
from agent.protocol.grants import Ask, Grant
from agent.protocol.topics import Topics
from agent.records import Record
from agent.store.outbox import Name, Outbox
from agent.sync.budget.pace import Pace
from agent.sync.budget.progress import Progress
from agent.sync.mqtt.connection import Connection
from agent.sync.up.objects import Body, Objects, Stalled, Unsafe
from agent.words import quoted

log = logging.getLogger("link")
TRIES_MAX = 3
ASKS = 3  # in `ack_timeout_s`: whoever had one may have been killed
RETRY_S = 1.0
REST_S = 60.0
PIECE_BYTES = 64 * 1024  # as the store keeps it


class _NotPut(LinkError):
    """This blob does not go by PUT, nor do others, for a while."""


class _Gone(Exception):
    """The record was acknowledged and purged, or given up, while its blob was read."""


class Puts:
    """Puts blobs into the cloud's object store; use it with `async with`."""

    def __init__(
        self,
        settings: Settings,
        device: str,
        outbox: Outbox,
        conditions: Conditions,
        clock: Clock,
        pace: Pace,
        progress: Progress,
    ) -> None:
        self._ack_timeout_s = settings.ack_timeout_s
        self._topics = Topics(settings.topic_prefix, device)
        self._outbox = outbox
        self._conditions = conditions
        self._clock = clock
        self._pace = pace
        self._progress = progress
        self._objects = Objects(settings)
        self._asked: list[tuple[Ask, asyncio.Future[Grant]]] = []
        self._rests_until = 0.0  # monotonic
        self._is_ill = False  # the last one that came to an end failed
        self._is_tried = False  # although it is ill

    async def __aenter__(self) -> Self:
        await self._objects.__aenter__()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._objects.__aexit__()

    def heard(self, payload: bytes) -> None:
        """A grant came: it goes to whoever waits for it, if somebody still does."""
        try:
            grant = grants.decode_grant(payload)
        except ProtocolError as error:
            hint = error.hint or "look at the ingest, and at who may publish to blob-grant"
            self._conditions.hold("grant_refused", "link", "warning", str(error), hint)
            return
        self._conditions.clear("grant_refused", "link")
        for ask, answer in self._asked:
            if grants.answers(grant, ask) and not answer.done():
                answer.set_result(grant)

    async def put(
        self, connection: Connection, name: Name, record: Record, *, live: bool = False
    ) -> bool:
        """Whether the cloud holds the record's blob, or it is gone; else send it in pieces.

        Raises LinkError when the connection ends, StoreError when the blob cannot be read.
        """
        if self._clock.monotonic() < self._rests_until or self._is_tried:
            return False
        alone = self._is_tried = self._is_ill
        try:
            await self._put(connection, name, record, live)
        except _Gone:
            return True
        except _NotPut as failed:
            self._is_ill = True
            self._rests_until = self._clock.monotonic() + REST_S
            cause = f"{record.stream} #{record.seq} goes in pieces: {failed}"
            self._conditions.hold("blobs_in_pieces", "link", "warning", cause, failed.hint)
            return False
        finally:
            if alone:
                self._is_tried = False
        self._is_ill, self._rests_until = False, 0.0
        log.info("%s #%d: put, %.0f KiB", record.stream, record.seq, record.blob_bytes / 1024)
        self._conditions.clear("blobs_in_pieces", "link")
        return True

    async def _put(self, connection: Connection, name: Name, record: Record, live: bool) -> None:
        """Ask and send by turns until the cloud says that it is there. Raises _NotPut, _Gone."""
        ask = await self._question(name, record)
        fault = ""
        for tries_left in range(TRIES_MAX, -1, -1):
            grant = await self._grant(connection, ask, live)
            if grant.stored:
                return
            if grant.refused:
                remedy = "configure the cloud's object store, or set link.blobs_by to mqtt"
                raise _NotPut(f"the cloud refused: {quoted(grant.refused)}", remedy)
            if tries_left:
                fault = await self._send(grant, record, live)
            if fault and tries_left > 1:
                await asyncio.sleep(RETRY_S)
        raise _NotPut(
            fault or "the object store took it, and the cloud does not find it there",
            "check that the device reaches the object store, and the cloud's clock and keys",
        )

    async def _question(self, name: Name, record: Record) -> Ask:
        digest = hashlib.sha256()
        async for piece in self._pieces(record):
            digest.update(piece)
        return Ask(
            epoch=name[0],
            stream=name[1],
            seq=record.seq,
            size=record.blob_bytes,
            sha256=digest.hexdigest(),
        )

    async def _pieces(self, record: Record) -> AsyncIterator[bytes]:
        start = 0
        while start < record.blob_bytes:
            piece = await self._outbox.blob(record, start, PIECE_BYTES)
            if not piece:
                raise _Gone
            yield piece
            start += len(piece)

    async def _grant(self, connection: Connection, ask: Ask, live: bool) -> Grant:
        """The cloud's answer. Raises _NotPut when there is none in `ack_timeout_s`."""
        payload = grants.encode(ask)
        answer: asyncio.Future[Grant] = asyncio.get_running_loop().create_future()
        self._asked.append((ask, answer))
        try:
            for _ in range(ASKS):
                await self._pace.take(len(payload), live=live)
                await connection.publish(self._topics.ask, payload)
                await asyncio.wait([answer], timeout=self._ack_timeout_s / ASKS)
                if answer.done():
                    return answer.result()
                if connection.ended.done():
                    raise LinkError(f"the connection is over: {connection.ended.result()}")
        finally:
            self._asked.remove((ask, answer))
        raise _NotPut(
            f"the cloud did not answer in {self._ack_timeout_s:.0f} s",
            "check that an ingest runs, and that it may read blob-ask on the broker",
        )

    async def _send(self, grant: Grant, record: Record, live: bool) -> str:
        """PUT it; empty once the store took it, else why it did not. Raises _NotPut, _Gone."""
        body = Body(lambda: self._pieces(record), self._pace, self._progress, live)
        try:
            return await self._objects.put(grant.url, grant.headers, record.blob_bytes, body)
        except (Unsafe, Stalled) as error:
            raise _NotPut(str(error), error.hint) from error

"""The cloud side of the protocol: what arrives is stored once, and acks say what is stored.

Limits  : REFUSED_MAX refused messages are kept, PAYLOAD_BYTES_MAX of each; the oldest go first.
Format  : fleet/sql; identity is (device, epoch, stream, seq).
Recovery: one transaction holds all that a call of `store` brings. What raised is not stored, and
          may be brought again, by anybody, any number of times.
"""

import logging
import random
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from typing import Self

from msgspec import Struct, structs

from agent.clock import Clock
from agent.protocol import grants
from agent.protocol.ack import Ack
from agent.protocol.grants import Ask
from agent.protocol.presence import Heartbeat, Presence
from agent.protocol.topics import Topics
from agent.records import digest
from fleet.store import acks, gaps, notes, refusals
from fleet.store.arrivals import Arrival, Brought, Name, Put, Refusal, device_of, take_apart
from fleet.store.database import Database, Unfit
from fleet.store.gaps import Census, Device, Report
from fleet.store.intake import Gone, Intake
from fleet.store.registry import Registry
from fleet.store.rows import refusal, refusals_of

__all__ = ["Arrival", "Cloud", "Name", "Verdict", "device_of"]
log = logging.getLogger("ingest")
UNFIT_MAX = 20  # records of one batch that are looked for one by one
ATTEMPTS = 3  # to find rows that somebody removes at the same time


class Verdict(Struct, frozen=True):
    """What became of arrivals. `streams` are those that were spoken of.

    `lags_s` has, for each batch of live records with a synchronised clock, how many seconds its
    last record is old.
    """

    records_new: int = 0
    records_known: int = 0
    blobs_done: int = 0
    refused: int = 0
    streams: set[Name] = set()
    lags_s: list[float] = []

    def plus(self, other: "Verdict") -> "Verdict":
        """Both in one."""
        return Verdict(
            self.records_new + other.records_new,
            self.records_known + other.records_known,
            self.blobs_done + other.blobs_done,
            self.refused + other.refused,
            self.streams | other.streams,
            self.lags_s + other.lags_s,
        )


class Cloud:
    """Over one database; open with `async with`, which opens the database too.

    Any number of them, in any number of processes, may work on one PostgreSQL side by side.
    """

    def __init__(
        self,
        database: Database,
        prefix: str = "holdfast/v1",
        clock: Clock | None = None,
        chance: random.Random | None = None,
    ) -> None:
        """`prefix` is the devices' `link.topic_prefix`; `chance` draws what acks list."""
        self.database = database
        self.prefix = prefix
        self._clock = clock or Clock()
        self._chance = chance or random.Random()
        self._registry = Registry(database)

    async def __aenter__(self) -> Self:
        await self.database.__aenter__()
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.database.__aexit__(*exc)

    async def store(self, arrivals: Sequence[Arrival]) -> Verdict:
        """Store what is new of it, in one transaction; returns once that is on the disk.

        What makes no sense, or cannot be stored, is kept as refused, with its cause. Raises
        StoreError: then nothing of it is stored, or all is and the answer was lost.
        """
        return await self.keep([take_apart(self.prefix, arrival) for arrival in arrivals])

    async def keep(self, opened: Sequence[Brought | Refusal]) -> Verdict:
        """As `store`, of arrivals that were taken apart before."""
        brought = [one for one in opened if isinstance(one, Brought)]
        refused = [one for one in opened if isinstance(one, Refusal)]
        if not brought and not refused:
            return Verdict()
        return await self._stored(brought, refused)

    async def note_put(self, device: str, ask: Ask, place: str) -> Verdict:
        """The blob lies in the object store, at the URL `place`: keep that, in one transaction.

        Refused when the blob is another one by its record. Raises StoreError.
        """
        arrival = Arrival(Topics(self.prefix, device).ask, grants.encode(ask))
        name = (device, ask.epoch, ask.stream)
        return await self._stored([Brought(arrival, name, put=Put(ask, place))], [])

    async def _stored(self, brought: list[Brought], refused: list[Refusal]) -> Verdict:
        """As `store`; what the database cannot take is found by halving, and refused."""
        try:
            return await self._tried(brought, refused)
        except Unfit as error:
            if len(brought) + len(refused) == 0:
                raise
            return await self._halved(brought, refused, error)

    async def _tried(self, brought: list[Brought], refused: list[Refusal]) -> Verdict:
        """As `store`; raises Unfit where the database cannot take something of it."""
        for _ in range(ATTEMPTS - 1):
            with suppress(Gone):
                return await self._transact(brought, refused)
            self._registry.forget()
        return await self._transact(brought, refused)

    async def _halved(
        self, brought: list[Brought], refused: list[Refusal], error: Unfit
    ) -> Verdict:
        if refused and brought:
            told = await self._stored([], refused)
            return told.plus(await self._stored(brought, []))
        if len(brought) > 1:
            half = len(brought) // 2
            told = await self._stored(brought[:half], [])
            return told.plus(await self._stored(brought[half:], []))
        if not brought:
            raise error  # refusals are made so that every database takes them
        if brought[0].events:
            return await self._picked(brought[0])
        return await self._stored([], [_unfit(brought[0], error)])

    async def _picked(self, one: Brought) -> Verdict:
        """One batch: the records that the database cannot take are refused, the others stored.

        Where there are more than UNFIT_MAX of them, all that is not stored by then is refused with
        them: to look for each of thousands would hold up everybody else.
        """
        told, parts = Verdict(), [(0, len(one.events))]  # from the first on, as they are popped
        words: list[Refusal] = []
        while parts:
            at, end = parts.pop()
            try:
                told = told.plus(await self._tried([_part(one, at, end)], []))
            except Unfit as error:
                cause = f"the database cannot take it: {error}"
                if len(words) == UNFIT_MAX:
                    words += refusals_of(one, one.events[at:], cause)
                    break
                if end - at > 1:
                    half = (at + end) // 2
                    parts += [(half, end), (at, half)]
                else:
                    words.append(refusal(one, one.events[at], cause))
        drops = [structs.replace(one, events=())] if one.drops else []
        return told.plus(await self._stored(drops, words))

    async def _transact(self, brought: list[Brought], refused: list[Refusal]) -> Verdict:
        now_us = self._now_us()
        names = {one.name for one in brought} | {one.name for one in refused if one.name}
        ids = await self._registry.streams(names, now_us)
        refused = refused + [_one_too_many(one) for one in brought if one.name not in ids]
        taken = [(ids[one.name], one) for one in brought if one.name in ids]
        async with self.database.begin() as transaction:
            intake = Intake(transaction, now_us)
            if taken:
                await intake.take(taken)
                await intake.save()
            refused = refused + intake.refusals
            await refusals.keep(transaction, refused, ids, now_us)
        for one in refused:
            log.warning("refused from %s: %s", one.device or one.topic, one.cause)
        return Verdict(
            intake.new,
            intake.known,
            intake.blobs.done,
            len(refused),
            {one.name for one in brought} | {one.name for one in refused if one.name},
            [_lag_s(one, now_us) for one in brought if _tells_lag(one)],
        )

    async def ack(self, device: str) -> Ack:
        """What is stored of a device, from the database. Raises StoreError."""
        return (await self.acks([device]))[device]

    async def acks(
        self, devices: Sequence[str], bytes_max: int = acks.ACK_BYTES_MAX
    ) -> dict[str, Ack]:
        """What is stored of each of these devices, from the database. Raises StoreError.

        An ack has `bytes_max` at most, whatever has to be left out for that.
        """
        async with self.database.begin() as transaction:
            return await acks.of(transaction, devices, self._chance, bytes_max)

    async def note(
        self, presences: Sequence[Presence], heartbeats: Mapping[str, Heartbeat]
    ) -> None:
        """Keep what devices say of themselves, in one transaction. Raises StoreError."""
        now_us = self._now_us()
        names = [name for name, _ in notes.balances(heartbeats)]
        ids = await self._registry.streams(names, now_us)
        async with self.database.begin() as transaction:
            await notes.presences(transaction, presences, now_us)
            await notes.heartbeats(transaction, heartbeats, ids, now_us)

    async def devices(self) -> list[Device]:
        """Every device, by name. Raises StoreError."""
        async with self.database.begin() as transaction:
            return await gaps.devices(transaction)

    async def gaps(self, device: str | None = None) -> Report:
        """What is missing, and where ledger and database differ. Raises StoreError."""
        async with self.database.begin() as transaction:
            return await gaps.report(transaction, device)

    async def census(self) -> Census:
        """What is counted of the whole database. Raises StoreError."""
        async with self.database.begin() as transaction:
            return await gaps.census(transaction)

    def _now_us(self) -> int:
        return int(self._clock.wall() * 1e6)


def _part(one: Brought, at: int, end: int) -> Brought:
    """Some of a batch's records, without its dropped ranges."""
    before = one.before
    if at:
        above, first = one.events[at - 1 : at + 1]
        before = digest(bytes(above.data)) if above.sequence == first.sequence - 1 else None
    return structs.replace(one, events=one.events[at:end], drops=(), before=before)


def _one_too_many(one: Brought) -> Refusal:
    cause = f"{one.name[1]} {one.name[2]}: the device has too many streams and epochs already"
    return Refusal(one.arrival.topic, cause, one.arrival.payload, one.name[0])


def _unfit(one: Brought, error: Unfit) -> Refusal:
    cause = f"the database cannot take it: {error}"
    return Refusal(one.arrival.topic, cause, one.arrival.payload, one.name[0])


def _tells_lag(one: Brought) -> bool:
    return one.live and bool(one.events) and one.events[-1].timebound


def _lag_s(one: Brought, now_us: int) -> float:
    try:
        then = datetime.fromisoformat(one.events[-1].time)
        return now_us / 1e6 - then.astimezone(UTC).timestamp()
    except (ValueError, OverflowError):
        return 0.0  # such a record was refused

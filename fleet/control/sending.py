"""What the controller says: the commands that are due, the desired documents, rollouts driven on.

A command is published when its device is there, or when nobody knows; noted as sent once the broker
has it; and again each `resend_s`, and whenever its device comes back, until its last word came.

Limits  : AT_ONCE are out without the broker's word.
Recovery: what was published and not noted goes out again; devices have one effect of an id.
"""

import asyncio
import logging
from contextlib import suppress

from msgspec import Struct

from agent.clock import Clock
from agent.errors import LinkError
from agent.protocol.topics import Topics
from fleet.control import book, driving, rollouts, standing, twins
from fleet.control.book import Due
from fleet.control.lease import Lease
from fleet.control.metrics import Metrics
from fleet.mqtt.connection import Connection
from fleet.store.database import Transaction

log = logging.getLogger("control")
AT_ONCE = 1000
PUBACK_S = 30.0
REST_S = 0.005  # before the next turn, so that results gather
ROUND_S = 1.0  # rollouts and what lapses are looked after at least so often
FORGET_S = 3600.0
DRIVE_REST = 4.0  # times what it took


Wanted = tuple[str, int, str]  # device, version, document


class Round(Struct):
    """What is due at `picked_us`, and later what became of it: it is true where there is any.

    `away` are not published: their devices are not there.
    """

    picked_us: int = 0
    commands: list[Due] = []
    refused: list[Due] = []
    away: list[Due] = []
    twins: list[Wanted] = []

    def __bool__(self) -> bool:
        return bool(self.commands or self.away or self.twins)


class Sending:
    """Outlives connections; `run` one at a time over each."""

    def __init__(
        self,
        lease: Lease,
        clock: Clock,
        metrics: Metrics,
        prefix: str,
        resend_s: float,
        *,
        poll_s: float,
        keep_days: float,
    ) -> None:
        self._lease = lease
        self._clock = clock
        self._metrics = metrics
        self._prefix = prefix
        self._resend_s = resend_s
        self._poll_s = poll_s
        self._keep_us = int(keep_days * 86_400e6)
        self._touched: set[str] = set()
        self._is_first = True  # what was touched last is not known: all rollouts are looked at
        self._wake = asyncio.Event()
        self._round_at = self._forget_at = self._drive_at = clock.monotonic()

    def moved(self, touched: set[str]) -> None:
        """Something came; what concerns these rollouts."""
        self._touched |= touched
        self._wake.set()

    async def run(self, connection: Connection) -> None:
        """For as long as the connection lives. Raises LinkError, LeaseLost, StoreError."""
        done = Round()
        while True:
            self._wake.clear()
            found = await self._turn(done)
            done = await self._published(connection, found)
            if found:
                continue
            with suppress(TimeoutError):
                async with asyncio.timeout(self._poll_s):
                    await self._wake.wait()
            await asyncio.sleep(REST_S)

    async def _turn(self, done: "Round") -> "Round":
        """One transaction: note what was published, drive rollouts on, look what is due."""
        async with self._lease.begin() as transaction:
            now_us = self._now_us()
            await self._note(transaction, done, now_us)
            driven = await self._look_after(transaction, now_us)
            due = await book.due(transaction, now_us, AT_ONCE)
            wanted = await twins.due(transaction, AT_ONCE)
        self._touched -= driven
        away = [one for one in due if one.online is False]
        there = [one for one in due if one.online is not False]
        return Round(now_us, there, [], away, list(wanted))

    async def _look_after(self, transaction: Transaction, now_us: int) -> set[str]:
        """Drive rollouts on: those that something happened to, and now and then all under way.

        To count a large one takes a while: so much longer it waits for the next time.
        """
        now, some = self._clock.monotonic(), set(self._touched)
        if now < self._drive_at:
            return set()
        if now >= self._round_at:
            self._round_at = now + ROUND_S
            some |= await book.lapse(transaction, now_us)
            some |= set(await standing.ids(transaction, () if self._is_first else driving.ACTIVE))
            self._is_first = False
        for id_ in sorted(some):
            await driving.drive(transaction, id_, now_us)
        if now >= self._forget_at:
            self._forget_at = now + FORGET_S
            await rollouts.forget(transaction, now_us - self._keep_us)
            await book.forget(transaction, now_us - self._keep_us)
        self._drive_at = now + DRIVE_REST * (self._clock.monotonic() - now)
        return some

    async def _note(self, transaction: Transaction, done: "Round", now_us: int) -> None:
        """What the broker has of a round, refused, and what waits for its device."""
        again_us = now_us + int(self._resend_s * 1e6)
        if done.commands:
            await book.sent(transaction, done.commands, done.picked_us, now_us, again_us)
        if done.refused:
            await book.put_off(transaction, done.refused, done.picked_us, again_us)
        if done.away:
            await book.put_off(transaction, done.away, done.picked_us, None)
        if done.twins:
            await twins.published(transaction, [(name, version) for name, version, _ in done.twins])

    async def _published(self, connection: Connection, due: "Round") -> "Round":
        """Give a round to the broker; what it has of that. Raises LinkError."""
        answers: dict[asyncio.Future[None], Due | Wanted] = {}
        for one in due.commands:
            topic = Topics(self._prefix, one.device).cmd
            payload = one.payload.encode()
            answers[await connection.publish(topic, payload, retain=False)] = one
        for wanted in due.twins:
            topic = Topics(self._prefix, wanted[0]).desired
            answers[await connection.publish(topic, wanted[2].encode())] = wanted
        done = Round(due.picked_us, [], [], due.away, [])
        if not answers:
            return done
        _, silent = await asyncio.wait(answers, timeout=PUBACK_S)
        if silent or connection.ended.done():
            raise LinkError("the broker does not answer to what is published")
        for answer, what in answers.items():
            if answer.exception() is not None:
                log.warning("to %s: %s", what[0], answer.exception())
            if isinstance(what, Due):
                (done.refused if answer.exception() else done.commands).append(what)
            elif answer.exception() is None:
                done.twins.append(what)
        self._metrics.published.inc(len(done.commands))
        return done

    def _now_us(self) -> int:
        return int(self._clock.wall() * 1e6)

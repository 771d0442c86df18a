"""What devices say to the controller: results, presence, reported documents; into the database.

A message is PUBACKed after its commit; while one transaction runs, the next gathers. Whatever
comes twice, or late, or out of order, changes nothing (words.py).

Limits  : the broker holds back what is more than the receive maximum; TAKEN_MAX are one
          transaction; of what comes with QoS 0 WAITING_MAX wait. RESULT_BYTES_MAX of a result.
Recovery: the database is away: nothing is PUBACKed, and it is tried again.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Sequence

import msgspec

from agent.clock import Clock
from agent.errors import ProtocolError, StoreError
from agent.protocol.commands import RESULT_BYTES_MAX, Result
from agent.protocol.envelope import from_json
from agent.protocol.presence import Presence
from agent.protocol.topics import Topics
from agent.protocol.twin import TWIN_BYTES_MAX, Reported
from agent.words import quoted
from fleet.control import book, known, twins
from fleet.control.lease import Lease
from fleet.control.metrics import Metrics
from fleet.mqtt.connection import Message
from fleet.store.arrivals import device_of
from fleet.store.database import Transaction, Unfit

log = logging.getLogger("control")
TAKEN_MAX = 2000
WAITING_MAX = 10_000
RETRY_S = 1.0


Said = Result | Presence | Reported


class Hearing:
    """Outlives connections. `moved(rollouts)` is called after what concerns them is committed."""

    def __init__(
        self,
        lease: Lease,
        clock: Clock,
        metrics: Metrics,
        prefix: str,
        resend_s: float,
        moved: Callable[[set[str]], None],
    ) -> None:
        self._lease = lease
        self._clock = clock
        self._metrics = metrics
        self._prefix = prefix
        self._resend_us = int(resend_s * 1e6)
        self._moved = moved
        self._waiting: deque[Message] = deque()
        self._more = asyncio.Event()

    def heard(self, message: Message) -> None:
        """A message came."""
        if message.qos == 0 and len(self._waiting) >= WAITING_MAX:
            self._metrics.refused.inc()  # no device speaks so here
            return
        self._waiting.append(message)
        self._more.set()

    def forget(self) -> None:
        """The connection is over: what was not PUBACKed comes again."""
        self._waiting.clear()

    async def run(self) -> None:
        """For ever. Raises LeaseLost."""
        while True:
            while not self._waiting:
                self._more.clear()
                await self._more.wait()
            taken = [self._waiting.popleft() for _ in range(min(len(self._waiting), TAKEN_MAX))]
            await self._kept([said for one in taken if (said := self._read(one)) is not None])
            for one in taken:
                one.take()

    def _read(self, message: Message) -> Said | None:
        """What a message says; what makes no sense is told, and left."""
        try:
            device = device_of(self._prefix, message.topic)
            said = _read(message.topic, message.payload, Topics(self._prefix, device))
            if said is not None and said.device != device:
                raise ProtocolError(f"it says it is of {quoted(said.device)}")
        except ProtocolError as error:
            self._metrics.refused.inc()
            log.warning("refused from %s: %s", quoted(message.topic), error)
            return None
        return said

    async def _kept(self, said: Sequence[Said]) -> None:
        """Into the database, as often as that takes; what it cannot take is found one by one."""
        while said:
            try:
                async with self._lease.begin() as transaction:
                    touched = await self._keep(transaction, said)
            except Unfit as error:
                if len(said) == 1:
                    log.warning("the word of %s is left out: %s", quoted(said[0].device), error)
                    return
                for one in said:
                    await self._kept([one])
                return
            except StoreError as error:
                self._metrics.faults.inc()
                log.error("%s (%s); trying again", error, error.hint)
                await asyncio.sleep(RETRY_S)
                continue
            for one in said:
                if isinstance(one, Result):
                    self._metrics.results.labels(one.state).inc()
            self._moved(touched)
            return

    async def _keep(self, transaction: Transaction, said: Sequence[Said]) -> set[str]:
        now_us = int(self._clock.wall() * 1e6)
        presences = {one.device: one for one in said if isinstance(one, Presence)}
        if presences:
            await known.presences(transaction, presences, now_us)
            online = {name: one.online for name, one in presences.items()}
            await book.turned(transaction, online, now_us)
        documents = {one.device: one for one in said if isinstance(one, Reported)}
        if documents:
            texts = {name: msgspec.json.encode(one).decode() for name, one in documents.items()}
            await twins.reported(transaction, texts, now_us)
        results = [one for one in said if isinstance(one, Result)]
        if not results:
            return set()
        again_us = now_us + self._resend_us
        _, touched = await book.heard(transaction, results, now_us, again_us)
        return touched


def _read(topic: str, payload: bytes, of: Topics) -> Said | None:
    """Raises ProtocolError."""
    if topic == of.result:
        _bounded(payload, RESULT_BYTES_MAX)
        return from_json(payload, Result)
    if topic == of.presence:
        return from_json(payload, Presence)
    if topic == of.reported:
        _bounded(payload, TWIN_BYTES_MAX)
        return from_json(payload, Reported)
    return None


def _bounded(payload: bytes, most: int) -> None:
    if len(payload) > most:
        raise ProtocolError(f"{len(payload)} bytes; expected {most} at most")

"""The controller: holds the lease, speaks to the broker, until it is told to stop.

Any number of them run on one database, and one acts (lease.py). The one that acts is one MQTT
client, whoever it is: it connects under the same client id, so it finds what was said while nobody
listened, and the broker lets go of one before.

Recovery: the broker is away: connect again. The database is away: try again. The lease is lost:
          stand by.
"""

import asyncio
import logging
import random
from contextlib import suppress

from agent.clock import Clock
from agent.errors import LinkError, StoreError
from fleet.control.abreast import first_of
from fleet.control.giving import Giving
from fleet.control.hearing import Hearing
from fleet.control.lease import Lease, LeaseLost
from fleet.control.metrics import Metrics
from fleet.control.sending import Sending
from fleet.mqtt.connection import MQTT5, MQTT311, Broker, Connection, Message, Unspoken

log = logging.getLogger("control")
BACKOFF_S_MIN, BACKOFF_S_MAX = 0.2, 15.0
LASTED_S = 10.0  # a connection that did was a good one
LEAVE_S = 5.0


class Controller:
    """One process's; `run` it until `stop` was called."""

    def __init__(
        self,
        lease: Lease,
        broker: Broker,
        metrics: Metrics,
        clock: Clock,
        jitter: random.Random,
        *,
        lease_s: float,
        poll_s: float,
        resend_s: float,
        keep_days: float,
        giving: Giving | None = None,
    ) -> None:
        """`giving` answers who asks for content."""
        self._lease = lease
        self._giving = giving
        self._broker = broker
        self._metrics = metrics
        self._clock = clock
        self._jitter = jitter
        self._lease_s = lease_s
        told = (lease, clock, metrics, broker.prefix, resend_s)
        self._sending = Sending(*told, poll_s=poll_s, keep_days=keep_days)
        self._hearing = Hearing(*told, self._sending.moved)
        self._version = MQTT5
        self._stopping = asyncio.Event()

    def stop(self) -> None:
        """Hand over, and end."""
        self._stopping.set()

    async def run(self) -> None:
        """Until `stop`. Raises ConfigError."""
        stopped = asyncio.create_task(self._stopping.wait())
        acting = asyncio.create_task(self._stand_by())
        try:
            await asyncio.wait([stopped, acting], return_when=asyncio.FIRST_COMPLETED)
            if acting.done():
                acting.result()
        finally:
            for task in (stopped, acting):
                task.cancel()
            await asyncio.gather(stopped, acting, return_exceptions=True)
            await self._leave()

    async def _leave(self) -> None:
        with suppress(StoreError, TimeoutError):
            async with asyncio.timeout(LEAVE_S):
                await self._lease.leave()

    async def _stand_by(self) -> None:
        """Act whenever the lease is ours; look for it three times in its length."""
        told = False
        while True:
            if await self._tended():
                self._metrics.leads.set(1)
                log.info("this controller acts")
                try:
                    await first_of(self._tend(), self._connect())
                except LeaseLost as error:
                    log.warning("%s; standing by", error)
                self._metrics.leads.set(0)
                told = True
            elif not told:
                log.info("another controller acts; standing by")
                told = True
            await asyncio.sleep(self._lease_s / 3)

    async def _tended(self) -> bool:
        try:
            return await self._lease.tend()
        except StoreError as error:
            self._metrics.faults.inc()
            log.error("%s (%s)", error, error.hint)
        return self._lease.held

    async def _tend(self) -> None:
        """Renew the lease. Raises LeaseLost."""
        while True:
            await asyncio.sleep(self._lease_s / 3)
            if not await self._tended():
                raise LeaseLost("another controller has taken over, or the database is away")

    async def _connect(self) -> None:
        """Connect, serve the connection to its end, wait, again. Raises LeaseLost."""
        backoff_s = BACKOFF_S_MIN
        while True:
            began = self._clock.monotonic()
            try:
                await self._one_connection()
            except (LinkError, StoreError) as error:
                log.warning("%s%s", error, f" ({error.hint})" if error.hint else "")
            self._metrics.connected.set(0)
            if self._clock.monotonic() - began >= LASTED_S:
                backoff_s = BACKOFF_S_MIN
            await asyncio.sleep(backoff_s * self._jitter.uniform(0.5, 1.0))
            backoff_s = min(backoff_s * 2, BACKOFF_S_MAX)

    async def _one_connection(self) -> None:
        self._hearing.forget()
        if self._giving:
            self._giving.forget()
        made = Connection(
            *(self._broker, self._broker.client_id, self._version, self._heard), fresh=False
        )
        try:
            connection = await made.__aenter__()
        except Unspoken:
            self._version = MQTT311 if self._version == MQTT5 else MQTT5
            raise
        try:
            root = f"{self._broker.prefix}/+"
            doors = ("result", "presence", "twin/reported")
            await connection.subscribe({f"{root}/{door}": 1 for door in doors})
            if self._giving:  # at most once: nobody is answered late
                await connection.subscribe({self._giving.topic: 0})
            self._metrics.connected.set(1)
            log.info("connected to %s as %s", self._broker.url, self._broker.client_id)
            parts = [self._hearing.run(), self._sending.run(connection), _ended(connection)]
            await first_of(*parts, *([self._giving.run(connection)] if self._giving else []))
        finally:
            await connection.__aexit__()

    def _heard(self, message: Message) -> None:
        if self._giving is None or not self._giving.takes(message):
            self._hearing.heard(message)


async def _ended(connection: Connection) -> None:
    raise LinkError(f"the connection ended: {await connection.ended}")

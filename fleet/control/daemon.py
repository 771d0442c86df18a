"""`holdfast-fleet control` as a process: its parts, its signals, its end."""

import asyncio
import logging
import os
import random
import secrets
import signal
import socket

import uvloop
from msgspec import Struct

from agent import structs
from agent.clock import Clock
from agent.errors import ConfigError
from fleet.control import base
from fleet.control.controller import Controller
from fleet.control.giving import Content, Giving
from fleet.control.lease import Lease
from fleet.control.metrics import Metrics
from fleet.mqtt.connection import Broker
from fleet.mqtt.daemon import LEVELS, check

log = logging.getLogger("control")


class Times(Struct, frozen=True, kw_only=True):
    """How often things are done."""

    lease_s: float = 10.0
    poll_s: float = 0.1
    resend_s: float = 60.0
    keep_days: float = 90.0


def run(
    broker: Broker,
    database_url: str,
    metrics_at: tuple[str, int],
    times: Times,
    log_level: str,
    content: Content | None = None,
) -> None:
    """Control until SIGTERM or SIGINT; without `content` nobody who asks for some is answered.

    Raises ConfigError, StoreError.
    """
    if log_level not in LEVELS:
        raise ConfigError(f"--log-level {log_level} is none", f"one of {', '.join(LEVELS)}")
    check(broker)
    if not broker.client_id:
        raise ConfigError("--client-id is empty", "give a name that controllers of one fleet share")
    if content:
        content.check()
    logging.basicConfig(
        level=log_level.upper(), format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )
    metrics = Metrics()
    if metrics_at[1]:
        metrics.serve(*metrics_at)
    structs.make_all()
    uvloop.run(_run(broker, database_url, metrics, times, content))


async def _run(
    broker: Broker, url: str, metrics: Metrics, times: Times, content: Content | None
) -> None:
    clock = Clock()
    giving = Giving(content, clock, metrics, broker.prefix) if content else None
    holder = f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(4)}"
    async with base.open(url) as database:
        lease = Lease(database, clock, holder, times.lease_s)
        controller = Controller(
            *(lease, broker, metrics, clock, random.Random()),
            lease_s=times.lease_s,
            poll_s=times.poll_s,
            resend_s=times.resend_s,
            keep_days=times.keep_days,
            giving=giving,
        )
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, controller.stop)
        log.info("ordering from %s", database.name)
        await controller.run()
        log.info("ended in order")

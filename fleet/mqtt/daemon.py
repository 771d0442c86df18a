"""`holdfast-fleet ingest` as a process: its parts, its signals, its end."""

import asyncio
import logging
import os
import random
import re
import signal

import aiohttp
import uvloop

from agent import structs
from agent.clock import Clock
from agent.errors import ConfigError
from agent.forms import BROKER_FORM, BROKER_URL
from fleet.mqtt.connection import Broker
from fleet.mqtt.ingest import Ingest
from fleet.mqtt.metrics import Metrics
from fleet.mqtt.s3 import S3
from fleet.store import database
from fleet.store.cloud import Cloud

log = logging.getLogger("ingest")
LEVELS = ("debug", "info", "warning", "error")


def run(
    broker: Broker,
    database_url: str,
    metrics_at: tuple[str, int],
    ack_s: float,
    heartbeat_s: float,
    log_level: str,
    s3: S3 | None = None,
) -> None:
    """Ingest until SIGTERM or SIGINT. Without `s3`, blobs come in pieces.

    Raises ConfigError, StoreError.
    """
    if log_level not in LEVELS:
        raise ConfigError(f"--log-level {log_level} is none", f"one of {', '.join(LEVELS)}")
    check(broker)
    logging.basicConfig(
        level=log_level.upper(), format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )
    metrics = Metrics()
    if metrics_at[1]:
        metrics.serve(*metrics_at)
    structs.make_all()
    uvloop.run(_run(broker, database_url, metrics, ack_s, heartbeat_s, s3))


def check(broker: Broker) -> None:
    """Whether the way to the broker makes sense. Raises ConfigError."""
    if not re.match(BROKER_URL, broker.url):
        written = re.sub(r"//[^/@]*@", "//***@", broker.url)  # no password in a message
        raise ConfigError(f"--broker {written!r} is no broker", f"write {BROKER_FORM}")
    if set(broker.prefix) & set("+#\0") or not broker.prefix.strip("/"):
        raise ConfigError(f"--prefix {broker.prefix!r}", "a topic without + and #, as holdfast/v1")
    if set(broker.group) & set("+#/\0") or not broker.group:
        raise ConfigError(f"--group {broker.group!r}", "a name without + # and /")
    if broker.key_file and not broker.cert_file:
        raise ConfigError("--key-file without --cert-file", "name both")


async def _run(
    broker: Broker, url: str, metrics: Metrics, ack_s: float, heartbeat_s: float, s3: S3 | None
) -> None:
    clock = Clock()
    async with (
        aiohttp.ClientSession() as session,
        Cloud(database.open(url), broker.prefix, clock) as cloud,
    ):
        ingest = Ingest(
            *(cloud, broker, metrics, clock, random.Random()),
            ack_s=ack_s,
            heartbeat_s=heartbeat_s,
            bucket=s3.open(os.environ, session) if s3 else None,
        )
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, ingest.stop)
        log.info("storing into %s", cloud.database.name)
        await ingest.run()
        log.info("ended in order")

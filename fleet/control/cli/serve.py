"""`holdfast-fleet control`: what can be said of it on the command line."""

from pathlib import Path
from typing import Annotated

import typer

from fleet.options import (
    SQLITE,
    CaFile,
    CertFile,
    ConnectSeconds,
    Database,
    KeyFile,
    MetricsPort,
    PasswordFile,
    Prefix,
    Url,
    Username,
    Word,
)

ClientId = Annotated[
    str, typer.Option(help="Controllers on one database share it; two fleets on a broker do not.")
]
ResendSeconds = Annotated[
    float, typer.Option(min=1, help="What is unanswered is published again each so often.")
]
PollSeconds = Annotated[
    float, typer.Option(min=0.01, help="New orders are looked for each so often.")
]
LeaseSeconds = Annotated[
    float, typer.Option(min=0.3, help="Another controller takes over after such a silence.")
]
KeepDays = Annotated[float, typer.Option(min=0.01, help="What ended is kept for so long.")]
ContentFolder = Annotated[
    Path | None, typer.Option("--content", help="A repository: devices may fetch from it by MQTT.")
]
ContentRate = Annotated[
    float, typer.Option("--content-bytes-per-s", min=1000, help="So fast at most, in all.")
]


def control(
    broker: Url,
    database: Database = SQLITE,
    prefix: Prefix = "holdfast/v1",
    client_id: ClientId = "holdfast-control",
    username: Username = None,
    password_file: PasswordFile = None,
    ca_file: CaFile = None,
    cert_file: CertFile = None,
    key_file: KeyFile = None,
    resend_s: ResendSeconds = 60.0,
    poll_s: PollSeconds = 0.1,
    lease_s: LeaseSeconds = 10.0,
    keep_days: KeepDays = 90.0,
    content: ContentFolder = None,
    content_bytes_per_s: ContentRate = 10e6,
    connect_timeout_s: ConnectSeconds = 10.0,
    metrics_port: MetricsPort = 0,
    metrics_host: Word = "127.0.0.1",
    log_level: Word = "info",
) -> None:
    """Give the orders that are in the database, take results, drive rollouts, until Ctrl-C.

    It runs beside an ingest. Of several on one database one acts, and the others stand by.
    """
    from fleet.control.daemon import Times, run
    from fleet.control.giving import Content
    from fleet.mqtt.connection import Broker

    way = Broker(
        url=broker,
        prefix=prefix,
        client_id=client_id,
        username=username,
        password_file=password_file,
        ca_file=ca_file,
        cert_file=cert_file,
        key_file=key_file,
        in_flight_max=1000,
        connect_timeout_s=connect_timeout_s,
    )
    times = Times(lease_s=lease_s, poll_s=poll_s, resend_s=resend_s, keep_days=keep_days)
    given = Content(content, content_bytes_per_s) if content else None
    run(way, database, (metrics_host, metrics_port), times, log_level, given)

"""`holdfast-fleet ingest`: what can be said of it on the command line."""

from typing import TYPE_CHECKING, Annotated

import typer

from agent.errors import ConfigError
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

if TYPE_CHECKING:  # what the command needs, it loads itself: `--help` needs none of it
    from fleet.mqtt.s3 import S3

Group = Annotated[str, typer.Option(help="Ingests of one group share the work.")]
ClientId = Annotated[
    str, typer.Option(help="A name of this ingest alone: it finds what came while it was away.")
]
AckSeconds = Annotated[float, typer.Option(min=0, help="A device is told each so often.")]
HeartbeatSeconds = Annotated[
    float, typer.Option(min=0.1, help="A device's heartbeat is written each so often.")
]
InFlightMax = Annotated[
    int, typer.Option(min=1, max=65_535, help="So many messages wait here, not in the broker.")
]
SessionSeconds = Annotated[
    int | None,
    typer.Option(
        min=0,
        max=4_294_967_294,
        help="So long the broker keeps what was for an ingest that died: 3600, nameless 10.",
    ),
]
Bucket = Annotated[
    str, typer.Option(help="Devices may put their blobs there, each by a URL of its own.")
]
Endpoint = Annotated[
    str, typer.Option(help="As the devices reach it: https://HOST, or https://{bucket}.HOST")
]
ObjectPrefix = Annotated[str, typer.Option(help="Before each object's key, as site/")]
KeysFile = Annotated[
    str | None, typer.Option(help="An AWS credentials file; none: AWS_ACCESS_KEY_ID, ...")
]
Profile = Annotated[str, typer.Option(help="Which keys of that file.")]


def ingest(
    broker: Url,
    database: Database = SQLITE,
    prefix: Prefix = "holdfast/v1",
    group: Group = "holdfast",
    client_id: ClientId = "",
    username: Username = None,
    password_file: PasswordFile = None,
    ca_file: CaFile = None,
    cert_file: CertFile = None,
    key_file: KeyFile = None,
    ack_s: AckSeconds = 0.1,
    heartbeat_s: HeartbeatSeconds = 10.0,
    in_flight_max: InFlightMax = 200,
    connect_timeout_s: ConnectSeconds = 10.0,
    session_s: SessionSeconds = None,
    metrics_port: MetricsPort = 0,
    metrics_host: Word = "127.0.0.1",
    log_level: Word = "info",
    s3_bucket: Bucket = "",
    s3_endpoint: Endpoint = "https://{bucket}.s3.amazonaws.com",
    s3_region: Word = "us-east-1",
    s3_prefix: ObjectPrefix = "",
    s3_keys_file: KeysFile = None,
    s3_profile: Profile = "default",
) -> None:
    """Store what devices publish, until Ctrl-C or SIGTERM.

    Start as many as the work needs, with one PostgreSQL and one --group.
    """
    from fleet.mqtt.connection import Broker
    from fleet.mqtt.daemon import run

    s3 = _s3(s3_bucket, s3_endpoint, s3_region, s3_prefix, s3_keys_file, s3_profile)
    way = Broker(
        url=broker,
        prefix=prefix,
        group=group,
        client_id=client_id,
        username=username,
        password_file=password_file,
        ca_file=ca_file,
        cert_file=cert_file,
        key_file=key_file,
        in_flight_max=in_flight_max,
        connect_timeout_s=connect_timeout_s,
        session_s=session_s,
    )
    run(way, database, (metrics_host, metrics_port), ack_s, heartbeat_s, log_level, s3)


def _s3(
    bucket: str, endpoint: str, region: str, prefix: str, keys_file: str | None, profile: str
) -> "S3 | None":
    """The way to the bucket, if there is one. Raises ConfigError."""
    from fleet.mqtt.s3 import S3

    if bucket:
        s3 = {"endpoint": endpoint, "region": region, "prefix": prefix, "profile": profile}
        return S3(bucket=bucket, keys_file=keys_file, **s3)
    if keys_file or prefix:
        raise ConfigError("--s3-keys-file or --s3-prefix without --s3-bucket", "name the bucket")
    return None

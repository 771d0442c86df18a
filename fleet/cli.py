"""The command line `holdfast-fleet`: the cloud side's."""

# ruff: noqa: E402
import signal

signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C ends a command, without a word

import sys
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from agent.errors import HoldfastError
from fleet import bundle_cli

if TYPE_CHECKING:  # what a command needs, it loads itself: `--help` needs none of it
    from fleet.store.cloud import Cloud

app = typer.Typer(
    name="holdfast-fleet",
    help="The cloud side of Holdfast: stores what devices send, and tells them so.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
app.add_typer(bundle_cli.app, name="bundle")
Database = Annotated[
    str,
    typer.Option(
        "--database",
        envvar="HOLDFAST_FLEET_DATABASE",
        help="sqlite:///PATH or postgresql://USER:PASSWORD@HOST/NAME",
    ),
]
SQLITE = "sqlite:///var/fleet.db"
UNBALANCED = 6
T = TypeVar("T")
Prefix = Annotated[str, typer.Option("--prefix", help="The devices' link.topic_prefix.")]
Json = Annotated[bool, typer.Option("--json", help="The document, for programs.")]


@app.callback()
def commands() -> None:
    """The cloud side of Holdfast: stores what devices send, and tells them so."""


@app.command()
def ingest(
    broker: Annotated[str, typer.Option(help="mqtt://HOST[:PORT] or mqtts://HOST[:PORT]")],
    database: Database = SQLITE,
    prefix: Prefix = "holdfast/v1",
    group: Annotated[str, typer.Option(help="Ingests of one group share the work.")] = "holdfast",
    client_id: Annotated[
        str, typer.Option(help="A name of this ingest alone: it finds what came while it was away.")
    ] = "",
    username: Annotated[str | None, typer.Option()] = None,
    password_file: Annotated[str | None, typer.Option(help="A file: no secret in `ps`.")] = None,
    ca_file: Annotated[str | None, typer.Option(help="Who signs the broker's certificate.")] = None,
    cert_file: Annotated[str | None, typer.Option(help="The certificate of this ingest.")] = None,
    key_file: Annotated[str | None, typer.Option(help="Its key.")] = None,
    ack_s: Annotated[float, typer.Option(min=0, help="A device is told each so often.")] = 0.1,
    heartbeat_s: Annotated[
        float, typer.Option(min=0.1, help="A device's heartbeat is written each so often.")
    ] = 10.0,
    in_flight_max: Annotated[
        int, typer.Option(min=1, max=65_535, help="So many messages wait here, not in the broker.")
    ] = 200,
    connect_timeout_s: Annotated[float, typer.Option(min=0.1)] = 10.0,
    session_s: Annotated[
        int | None,
        typer.Option(
            min=0,
            max=4_294_967_294,
            help="So long the broker keeps what was for an ingest that died: 3600, nameless 10.",
        ),
    ] = None,
    metrics_port: Annotated[
        int, typer.Option(min=0, max=65_535, help="Prometheus' metrics; 0: none.")
    ] = 0,
    metrics_host: Annotated[str, typer.Option()] = "127.0.0.1",
    log_level: Annotated[str, typer.Option()] = "info",
    s3_bucket: Annotated[
        str, typer.Option(help="Devices may put their blobs there, each by a URL of its own.")
    ] = "",
    s3_endpoint: Annotated[
        str, typer.Option(help="As the devices reach it: https://HOST, or https://{bucket}.HOST")
    ] = "https://{bucket}.s3.amazonaws.com",
    s3_region: Annotated[str, typer.Option()] = "us-east-1",
    s3_prefix: Annotated[str, typer.Option(help="Before each object's key, as site/")] = "",
    s3_keys_file: Annotated[
        str | None, typer.Option(help="An AWS credentials file; none: AWS_ACCESS_KEY_ID, ...")
    ] = None,
    s3_profile: Annotated[str, typer.Option(help="Which keys of that file.")] = "default",
) -> None:
    """Store what devices publish, until Ctrl-C or SIGTERM.

    Start as many as the work needs, with one PostgreSQL and one --group.
    """
    from agent.errors import ConfigError
    from fleet.mqtt.connection import Broker
    from fleet.mqtt.daemon import run
    from fleet.mqtt.s3 import S3

    if (s3_keys_file or s3_prefix) and not s3_bucket:
        raise ConfigError("--s3-keys-file or --s3-prefix without --s3-bucket", "name the bucket")

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
    s3 = S3(
        bucket=s3_bucket,
        endpoint=s3_endpoint,
        region=s3_region,
        prefix=s3_prefix,
        keys_file=s3_keys_file,
        profile=s3_profile,
    )
    metrics_at = (metrics_host, metrics_port)
    run(way, database, metrics_at, ack_s, heartbeat_s, log_level, s3 if s3_bucket else None)


@app.command()
def devices(database: Database = SQLITE, as_json: Json = False) -> None:
    """Every device: whether it is there, how it is, what of it is stored."""
    import msgspec

    from fleet import view
    from fleet.store.cloud import Cloud

    found = _asked(database, Cloud.devices)
    if as_json:
        print(msgspec.json.encode({"devices": found}).decode())
    else:
        view.devices(found)


@app.command()
def gaps(
    device: Annotated[str | None, typer.Option(help="Of this device alone.")] = None,
    database: Database = SQLITE,
    as_json: Json = False,
) -> None:
    """What is missing, since when, whose ledger does not fit what is stored, and who gives
    out seqs twice.

    Exit code 6 when a device counts as delivered what is not stored, or sends other records than
    those that are stored as the same.
    """
    import msgspec

    from fleet import view
    from fleet.store.cloud import Cloud

    found = _asked(database, lambda cloud: Cloud.gaps(cloud, device))
    if as_json:
        print(msgspec.json.encode(found.document()).decode())
    else:
        view.gaps(found)
    if not found.is_balanced:
        raise typer.Exit(UNBALANCED)


def _asked(url: str, question: "Callable[[Cloud], Awaitable[T]]") -> "T":
    """What the database answers, beside an ingest that writes it."""
    import asyncio

    from fleet.store import database
    from fleet.store.cloud import Cloud

    async def asked() -> "T":
        async with Cloud(database.open(url, reads_only=True)) as cloud:
            return await question(cloud)

    return asyncio.run(asked())


def main() -> None:
    """The entry point: errors of ours end with a message, a hint and their exit code."""
    try:
        app()
    except HoldfastError as error:
        print(f"holdfast-fleet: {error}", file=sys.stderr)
        if error.hint:
            print(f"  try: {error.hint}", file=sys.stderr)
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()

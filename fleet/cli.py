"""The command line `holdfast-fleet`: the cloud side's."""

# ruff: noqa: E402
import signal

signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C ends a command, without a word

import sys
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from agent.errors import HoldfastError
from fleet import bundle_cli, identity_cli, ingest_cli, package_cli, updates_cli
from fleet.control.cli import devices, rollout, send, serve
from fleet.options import SQLITE, Database, Json

if TYPE_CHECKING:  # what a command needs, it loads itself: `--help` needs none of it
    from fleet.store.cloud import Cloud

app = typer.Typer(
    name="holdfast-fleet",
    help="The cloud side of Holdfast: stores what devices send, and tells them what to do.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
app.add_typer(bundle_cli.app, name="bundle")
app.add_typer(identity_cli.app, name="identity")
app.add_typer(updates_cli.app, name="updates")
app.add_typer(rollout.app, name="rollout")
app.add_typer(devices.devices_app, name="devices")
app.add_typer(devices.tag_app, name="tag")
app.add_typer(devices.twin_app, name="twin")
for _command in (
    *(ingest_cli.ingest, package_cli.package, serve.control, devices.status),
    *(send.send, send.commands, devices.watch),
):
    app.command()(_command)
UNBALANCED = 6
T = TypeVar("T")


@app.callback()
def holdfast_fleet() -> None:
    """The cloud side of Holdfast: stores what devices send, and tells them what to do."""


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

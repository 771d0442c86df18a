"""`holdfast config`: the file of --config, and the versions that the agent keeps of it."""

import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from agent.cli.options import DEFAULT, Config, Json
from agent.cli.sync import seconds
from agent.errors import AgentUnreachable, HoldfastError

if TYPE_CHECKING:  # what a command needs, it loads itself: `--help` needs none of it
    from agent.cli.client import Client

app = typer.Typer(help="The configuration: its file, and its versions.", no_args_is_help=True)
CONFIG = "/api/v1/config"
TIMEOUT_S = 60.0  # a domain may load a model
RESTART_S = 120.0  # how long an agent that begins anew is waited for
POLL_S = 0.2
WINDOW_S = 120.0
Number = Annotated[int | None, typer.Argument(metavar="[VERSION]", min=1)]
Why = Annotated[str, typer.Option(help="A word for whoever looks at the versions later.")]
NoWait = Annotated[bool, typer.Option("--no-wait", help="Do not wait for the end of its trial.")]


@app.command("check")
def check(config: Config = DEFAULT) -> None:
    """Check the configuration file. Exit code 78 when it cannot be used."""
    from agent import config_file

    config_file.load(config)
    typer.echo(f"{config}: good")


@app.command("versions")
def versions(config: Config = DEFAULT, as_json: Json = False) -> None:
    """Which version is live, which one is on trial, and those that are kept, the newest first."""
    from agent.cli.client import Client

    document = Client.of(config).get(CONFIG)
    if as_json:
        print(json.dumps(document))
        return
    from agent.cli.config_view import versions as view

    view(document)


@app.command("show")
def show(number: Number = None, config: Config = DEFAULT, as_json: Json = False) -> None:
    """A version as it is written, by default the live one; what looks like a password is masked."""
    from agent.cli.client import Client

    query = "" if number is None else f"?number={number}"
    document = Client.of(config).get(f"{CONFIG}/document{query}")
    if as_json:
        print(json.dumps(document))
        return
    from agent.words import printable

    for line in document["document"].splitlines():
        print(printable(line))


@app.command("apply")
def apply(
    file: Annotated[
        Path | None, typer.Argument(metavar="[FILE]", help="A whole configuration; -: from stdin.")
    ] = None,
    patch: Annotated[
        str | None,
        typer.Option(help='Or what of the live one is to be another: \'{"log_level": "debug"}\'.'),
    ] = None,
    manual: Annotated[
        bool, typer.Option("--manual", help="Taken back unless somebody confirms it in time.")
    ] = False,
    confirm: Annotated[
        float | None,
        typer.Option(parser=seconds, metavar="SPAN", help="How long it is on trial: 2min."),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only check it, and show what would be done.")
    ] = False,
    why: Why = "",
    no_wait: NoWait = False,
    config: Config = DEFAULT,
    as_json: Json = False,
) -> None:
    """Have another configuration, on trial: one that cuts the link or fails is taken back.

    Exit code 1 when it is not taken, or taken back.
    """
    from agent.cli.client import Client

    window_s = WINDOW_S if confirm is None else confirm
    order: dict[str, Any] = {"dry_run": dry_run, "why": why, "confirm_s": window_s}
    order |= {"confirm": "manual" if manual else "auto", **_what(file, patch)}
    client = Client.of(config, TIMEOUT_S)
    done = client.post(f"{CONFIG}/apply", order)
    _tell(client, done, window_s, as_json, wait=not (no_wait or manual))


@app.command("rollback")
def rollback(
    number: Number = None,
    why: Why = "",
    no_wait: NoWait = False,
    config: Config = DEFAULT,
    as_json: Json = False,
) -> None:
    """Have a version that is kept, by default the one before; a trial ends with that."""
    from agent.cli.client import Client

    client = Client.of(config, TIMEOUT_S)
    document = client.post(f"{CONFIG}/rollback", {"number": number, "why": why})
    _tell(client, document, 0.0, as_json, wait=not no_wait)


@app.command("confirm")
def confirm(
    number: Number = None, why: Why = "", config: Config = DEFAULT, as_json: Json = False
) -> None:
    """The live version stays: its trial ends well, and what was taken back before is known."""
    from agent.cli.client import Client

    document = Client.of(config).post(f"{CONFIG}/confirm", {"number": number, "why": why})
    print(json.dumps(document) if as_json else f"version {document['live']} stays")


def _what(file: Path | None, patch: str | None) -> dict[str, Any]:
    """Raises typer.BadParameter, HoldfastError."""
    if (file is None) == (patch is None):
        raise typer.BadParameter("name a FILE, or give a --patch")
    if patch is not None:
        try:
            found = json.loads(patch)
        except ValueError as error:
            raise typer.BadParameter(f"--patch: no JSON: {error}") from error
        return {"patch": found}
    assert file is not None
    try:
        return {"document": sys.stdin.read() if str(file) == "-" else file.read_text()}
    except (OSError, UnicodeDecodeError) as error:
        raise HoldfastError(f"{file}: cannot be read: {error}", "name another file") from error


def _tell(
    client: "Client", document: dict[str, Any], window_s: float, as_json: bool, *, wait: bool
) -> None:
    """What was done; and, once it is known, what became of it."""
    from agent.cli.config_view import applied, ended

    if not as_json:
        applied(document)
    if document["state"] == "trial" and wait:
        step = _awaited(client, document["number"], window_s + RESTART_S)
        document |= {"state": step["state"], "why": step["why"]}
        if not as_json:
            ended(document)
    if as_json:
        print(json.dumps(document))
    if document["state"] == "taken_back":
        raise typer.Exit(1)


def _awaited(client: "Client", number: int, within_s: float) -> dict[str, Any]:
    """The step that ended a version's trial; the agent may begin anew meanwhile."""
    end_s = time.monotonic() + within_s
    while time.monotonic() < end_s:
        try:
            found = client.get(CONFIG)
        except AgentUnreachable:
            pass
        else:
            steps = [one for one in found["steps"] if one["number"] == number]
            if steps and steps[0]["state"] in ("confirmed", "taken_back"):
                return dict(steps[0])
        time.sleep(POLL_S)
    raise AgentUnreachable(
        f"what became of version {number} is not known after {within_s:g} s",
        "holdfast config versions; holdfast logs",
    )

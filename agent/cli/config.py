"""`holdfast config`: the file of --config, and the versions that the agent keeps of it."""

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from agent.cli import orders
from agent.cli.options import DEFAULT, Config, Json
from agent.cli.sync import seconds
from agent.errors import HoldfastError
from agent.words import printable

if TYPE_CHECKING:  # what a command needs, it loads itself: `--help` needs none of it
    from agent.cli.client import Client

app = typer.Typer(help="The configuration: its file, and its versions.", no_args_is_help=True)
CONFIG = "/api/v1/config"
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
    window_s = WINDOW_S if confirm is None else confirm
    args: dict[str, Any] = {"dry_run": dry_run, "why": why, "confirm_s": window_s}
    args |= {"confirm": "manual" if manual else "auto", **_what(file, patch)}
    _order(config, "config.apply", args, as_json=as_json, wait=not (no_wait or manual))


@app.command("rollback")
def rollback(
    number: Number = None,
    why: Why = "",
    no_wait: NoWait = False,
    config: Config = DEFAULT,
    as_json: Json = False,
) -> None:
    """Have a version that is kept, by default the one before; a trial ends with that."""
    args = {"number": number, "why": why}
    _order(config, "config.rollback", args, as_json=as_json, wait=not no_wait)


@app.command("confirm")
def confirm(
    number: Number = None, why: Why = "", config: Config = DEFAULT, as_json: Json = False
) -> None:
    """The live version stays: its trial ends well, and what was taken back before is known."""
    order = orders.order("config.confirm", {"number": number, "why": why})
    document = _well(orders.ended(_client(config), order))["result"]
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


def _order(config: Path, name: str, args: dict[str, Any], *, as_json: bool, wait: bool) -> None:
    """Order it; say what it changes and, once it is known, what became of it."""
    from agent.cli.config_view import applied, ended

    client, order = _client(config), orders.order(name, args)
    result = orders.given(client, order)
    done: dict[str, Any] = {}
    while True:
        if not done and (done := _done(client, order)) and not as_json:
            applied(done)
        if orders.over(result) or (done and not wait):
            break
        result = orders.later(client, order, orders.STEP_S if done else POLL_S)
    told = bool(done)
    if orders.over(result):
        done = result.get("result") or _done(client, order)
    if done.get("state") != "taken_back":
        _well(result)
    if as_json:
        print(json.dumps(done | {"id": order["id"]}))
    elif not told:
        applied(done)
    elif orders.over(result):
        ended(done)
    if done["state"] == "taken_back":
        raise typer.Exit(1)


def _well(result: dict[str, Any]) -> dict[str, Any]:
    """A result, unless it is that of an order that was not carried out. Raises HoldfastError."""
    if orders.over(result) and result["state"] != "succeeded":
        said = printable(result.get("message", result["state"]))
        raise HoldfastError(said, printable(result.get("hint", "")))
    return result


def _done(client: "Client", order: dict[str, Any]) -> dict[str, Any]:
    """What an order has done so far, as the versions know it, over restarts too; {}: nothing."""
    steps = orders.patiently(lambda: client.get(CONFIG))["steps"]  # the newest first
    mine = [one for one in steps if one["order"] == order["id"]]
    chosen = [one for one in mine if one["state"] == "chosen"]
    if not chosen:
        return {}
    sections = chosen[0]["change"]["sections"]
    last = mine[0]
    return {
        "number": last["number"],
        "state": last["state"] if last["state"] in ("confirmed", "taken_back") else "trial",
        "changed": list(sections),
        "restart": {name: why for name, why in sections.items() if why},
        "lost": chosen[0]["change"]["lost"],
        "why": last["why"],
    }


def _client(config: Path) -> "Client":
    from agent.cli.client import Client

    return Client.of(config, orders.TIMEOUT_S)

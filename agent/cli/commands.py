"""`holdfast commands`: what can be ordered, and what became of it."""

import json
from typing import TYPE_CHECKING, Annotated, Any

import typer

from agent.cli import orders
from agent.cli.options import DEFAULT, Config, Json
from agent.cli.orders import COMMANDS
from agent.errors import RequestError

if TYPE_CHECKING:  # what a command needs, it loads itself: `--help` needs none of it
    from agent.cli.client import Client

app = typer.Typer(
    help="Commands: order something, and see what became of it.", no_args_is_help=True
)
NOT_DONE = 9  # exit code: it ended, and not well
Id = Annotated[str, typer.Argument(metavar="ID", help="As `holdfast commands ls` names it.")]


@app.command("help")
def help_(
    name: Annotated[
        str, typer.Argument(metavar="[NAME]", help="One of them, with all it takes.")
    ] = "",
    config: Config = DEFAULT,
    as_json: Json = False,
) -> None:
    """What can be ordered from this device, by this command, HTTP, MQTT and a bundle alike."""
    found = _client(config).get(f"{COMMANDS}/catalogue")["commands"]
    chosen = [one for one in found if name in ("", one["name"])]
    if not chosen:
        raise RequestError(f"there is no command {name!r}", "`holdfast commands help` lists all")
    if as_json:
        print(json.dumps({"commands": chosen}))
        return
    from agent.cli.commands_view import catalogue, verb

    verb(chosen[0]) if name else catalogue(chosen)


@app.command("send")
def send(
    name: Annotated[str, typer.Argument(help="As `holdfast commands help` lists it.")],
    args: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="VALUE is JSON, or a text.")
    ] = None,
    id: Annotated[str, typer.Option(help="The same id again has no second effect.")] = "",
    wait: Annotated[bool, typer.Option(help="Wait until it has ended.")] = True,
    config: Config = DEFAULT,
    as_json: Json = False,
) -> None:
    """Order something. Exit code 0: it was done; 9: it ended otherwise."""
    order = orders.order(name, dict(_pair(one) for one in args or []), id)
    client = _client(config)
    result = orders.ended(client, order) if wait else orders.given(client, order)
    _show(result, as_json=as_json)


@app.command("cancel")
def cancel(command: Id, config: Config = DEFAULT, as_json: Json = False) -> None:
    """Have a command never begin that has not. Exit code 1: it runs already, or has ended."""
    result = _client(config).delete(orders.route(command))
    if as_json:
        print(json.dumps(result))
        return
    from agent.cli.commands_view import command as view

    view(result)


@app.command("show")
def show(command: Id, config: Config = DEFAULT, as_json: Json = False) -> None:
    """What became of a command. Exit code 0: it was done, or goes on; 9: it ended otherwise."""
    _show(_client(config).get(orders.route(command)), as_json=as_json)


@app.command("ls")
def ls(
    count: Annotated[int, typer.Option(min=1, max=1000, help="So many, the newest.")] = 20,
    refused: Annotated[bool, typer.Option(help="Those that were not accepted.")] = False,
    config: Config = DEFAULT,
    as_json: Json = False,
) -> None:
    """One line for each command, the newest first."""
    route = f"{COMMANDS}/refusals" if refused else COMMANDS
    document = _client(config).get(f"{route}?count={count}")
    if as_json:
        print(json.dumps(document))
        return
    from agent.cli.commands_view import commands, refusals

    refusals(document["refusals"]) if refused else commands(document["commands"])


@app.command("twin")
def twin(config: Config = DEFAULT, as_json: Json = False) -> None:
    """What the cloud wants of this device, and how it is."""
    document = _client(config).get("/api/v1/twin")
    if as_json:
        print(json.dumps(document))
        return
    from agent.cli.commands_view import twin as view

    view(document)


def _show(result: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        print(json.dumps(result))
    else:
        from agent.cli.commands_view import command

        command(result)
    if orders.over(result) and result["state"] != "succeeded":
        raise typer.Exit(NOT_DONE)


def _pair(text: str) -> tuple[str, Any]:
    """KEY=VALUE. Raises RequestError."""
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise RequestError(f"{text!r}: expected KEY=VALUE", "for example for_s=3600")
    try:
        return key, json.loads(value)
    except (ValueError, RecursionError):
        return key, value


def _client(config: Any) -> "Client":
    from agent.cli.client import Client

    return Client.of(config, orders.TIMEOUT_S)

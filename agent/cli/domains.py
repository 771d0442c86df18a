"""`holdfast domains`: the processes that run the models."""

import json
import os
from typing import Annotated, Any
from urllib.parse import quote

import typer

from agent.cli.client import Client
from agent.cli.options import DEFAULT, Config, Json

app = typer.Typer(help="The processes that run the models.", no_args_is_help=True)
APPLY_S_MAX = 300.0  # changed domains start anew, with models that may be large


@app.command("ls")
def ls(config: Config = DEFAULT, as_json: Json = False) -> None:
    """Each domain: is it ready, what serves in it, what waits."""
    found = Client.of(config).get("/api/v1/domains")
    if as_json:
        typer.echo(json.dumps(found))
        return
    from agent.cli.domains_view import listed

    listed(found)


@app.command("restart")
def restart(name: str, config: Config = DEFAULT) -> None:
    """Kill a domain's processes, and start others; calls that may be made twice are made again."""
    Client.of(config).post(f"{_route(name)}/restart")
    typer.echo(f"domain {name} is being restarted")


@app.command("apply")
def apply(config: Config = DEFAULT, as_json: Json = False) -> None:
    """Have the domains be as the configuration file says now; those it leaves alone go on."""
    done = Client.of(config, APPLY_S_MAX).post("/api/v1/domains/apply")
    if as_json:
        typer.echo(json.dumps(done))
        return
    for name, what in done["done"].items():
        typer.echo(f"domain {name}: {what}")
    if not done["done"]:
        typer.echo("nothing to do: the domains are as the file says")


@app.command("trace")
def trace(
    name: str,
    *,
    model: Annotated[str, typer.Option("--model", help="Only calls to this model.")] = "",
    slowest: Annotated[bool, typer.Option("--slowest", help="The slowest first.")] = False,
    count: Annotated[int, typer.Option("--count", min=1, help="How many calls.")] = 10,
    config: Config = DEFAULT,
    as_json: Json = False,
) -> None:
    """Where the last calls spent their time, step by step."""
    query = f"?model={quote(os.fsencode(model), safe='')}" if model else ""
    found = Client.of(config).get(f"{_route(name)}/trace{query}")
    calls: list[dict[str, Any]] = found["calls"]
    if slowest:
        calls.sort(key=lambda call: -(call["total_ms"] or 0.0))
    found["calls"] = calls[:count]
    if as_json:
        typer.echo(json.dumps(found))
        return
    from agent.cli.domains_view import traced

    traced(found)


def _route(name: str) -> str:
    # Any bytes there can be on a command line.
    return f"/api/v1/domains/{quote(os.fsencode(name), safe='')}"

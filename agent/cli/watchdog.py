"""`holdfast watchdog`: what must move, what was done where it did not, and a test of it."""

import json
from typing import Annotated

import typer

from agent.cli.options import DEFAULT, Config, Json

app = typer.Typer(help="What must move, and what is done where it does not.", no_args_is_help=True)
WATCHDOG = "/api/v1/watchdog"


@app.command("status")
def status(config: Config = DEFAULT, as_json: Json = False) -> None:
    """Show each part: whether it moves, and for how long it has not."""
    from agent.cli.client import Client

    document = Client.of(config).get(WATCHDOG)
    if as_json:
        print(json.dumps(document))
        return
    from agent.cli.watchdog_view import parts

    parts(document)


@app.command("history")
def history(config: Config = DEFAULT, as_json: Json = False) -> None:
    """Show what was done where a part stood still, the newest first."""
    from agent.cli.client import Client

    document = Client.of(config).get(f"{WATCHDOG}/history")
    if as_json:
        print(json.dumps(document))
        return
    from agent.cli.watchdog_view import events

    events(document)


@app.command("test")
def test(
    part: Annotated[
        str,
        typer.Argument(metavar="PART", help="As `status` names it, or `loop`."),
    ],
    config: Config = DEFAULT,
) -> None:
    """Have a part stand still for real, and watch it come back.

    `store` and `loop` end the agent: only as a service is it started again. Calls under way may
    fail; what was accepted as durable stays. Exit code 5: it was not back in time.
    """
    from agent.cli.client import Client
    from agent.cli.watchdog_view import Watching

    client = Client.of(config)
    watching = Watching(client, part)
    client.post(f"{WATCHDOG}/test", {"part": part})
    raise typer.Exit(watching.until_back())

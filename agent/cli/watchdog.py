"""`holdfast watchdog`: what must move, what was done where it did not, a test, and safe mode."""

import json
from typing import Annotated

import typer

from agent.cli.options import DEFAULT, Config, Json
from agent.cli.sync import seconds
from agent.errors import HoldfastError

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


@app.command("resume")
def resume(config: Config = DEFAULT, as_json: Json = False) -> None:
    """Leave safe mode: models run again, and all budgets of restarts and resets begin anew."""
    from agent.cli.client import Client

    document = Client.of(config).post(f"{WATCHDOG}/resume")
    if as_json:
        print(json.dumps(document))
        return
    from agent.cli.watchdog_view import start

    start(document)


@app.command("test")
def test(
    part: Annotated[
        str,
        typer.Argument(metavar="PART", help="As `status` names it, or `loop`, or `reset`."),
    ],
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Of `reset`: show what would be tried.")
    ] = False,
    config: Config = DEFAULT,
    as_json: Json = False,
) -> None:
    """Have a part stand still for real, and watch it come back.

    `store` and `loop` end the agent: only as a service is it started again. Calls under way may
    fail; what was accepted as durable stays. Exit code 5: it was not back in time.

    `reset --dry-run` shows which hooks would reset this machine, and which of them could not.
    """
    from agent.cli.client import Client
    from agent.cli.watchdog_view import Watching, hooks

    client = Client.of(config)
    if (part == "reset") != dry_run:
        raise HoldfastError(
            "only a reset has a dry run, and that alone is tried here",
            "holdfast watchdog test reset --dry-run",
        )
    if dry_run:
        document = client.get(f"{WATCHDOG}/resets")
        print(json.dumps(document)) if as_json else hooks(document)
        return
    watching = Watching(client, part)
    client.post(f"{WATCHDOG}/test", {"part": part})
    raise typer.Exit(watching.until_back())


@app.command("disarm")
def disarm(
    for_s: Annotated[
        float | None,
        typer.Option(
            "--for", parser=seconds, metavar="SPAN", help="For so long, as 45s, 2h; 1h if not said."
        ),
    ] = None,
    config: Config = DEFAULT,
) -> None:
    """Have the watchdog judge and tell, and do nothing: for a debugger, or a repair.

    It is armed again by itself, after that time (24 h at most) and with each start of the agent.
    """
    from agent.cli.client import Client
    from agent.cli.watchdog_view import parts

    order = None if for_s is None else {"for_s": for_s}
    parts(Client.of(config).post(f"{WATCHDOG}/disarm", order))


@app.command("arm")
def arm(config: Config = DEFAULT) -> None:
    """Arm the watchdog again."""
    from agent.cli.client import Client
    from agent.cli.watchdog_view import parts

    parts(Client.of(config).post(f"{WATCHDOG}/arm"))

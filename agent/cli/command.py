"""The command line `holdfast`: what there is to type, and how errors end it."""

# ruff: noqa: E402
import signal

signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C ends a command, without a word

import os
import sys
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup
from typer.main import get_command

from agent.cli.options import DEFAULT, Config, Json
from agent.errors import HoldfastError

# Groups of commands, each a module beside this one.
GROUPS = (
    "config",
    "domains",
    "outbox",
    "sync",
    "jobs",
    "bundle",
    "audio",
    "models",
    "tokens",
    "watchdog",
    "commands",
    "provision",
)


class Commands(TyperGroup):
    """Reads a group of commands when it is asked for: on a small board each takes a while."""

    def list_commands(self, ctx: Any) -> list[str]:
        """All there are, those of this module first."""
        return [*super().list_commands(ctx), *GROUPS]

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """One of them, None where there is none of that name."""
        if cmd_name in GROUPS and cmd_name not in self.commands:
            group = import_module(f"agent.cli.{cmd_name}")
            self.commands[cmd_name] = get_command(group.app)
            self.commands[cmd_name].name = cmd_name
        return super().get_command(ctx, cmd_name)


app = typer.Typer(
    name="holdfast",
    cls=Commands,
    help="Keeps an unattended machine useful: hears, keeps, delivers, gets up again.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)


@app.command()
def run(config: Config = DEFAULT) -> None:
    """Run the agent in the foreground until Ctrl-C."""
    # A new program in this process: what parses command lines takes 7 MiB that an agent has no use
    # for during the years it runs. -P: a soxr.py in the working directory is not ours to load.
    # Ctrl-C waits until the new program has begun; Python's own start would end with a traceback.
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    os.execv(sys.executable, [sys.executable, "-P", "-m", "agent.cli.run", str(config)])


@app.command()
def status(config: Config = DEFAULT, json: Json = False) -> None:
    """Show the device's state in one screen.

    Exit code: 0 healthy, 4 degraded, 5 unhealthy, 3 no agent answers (then the last snapshot).
    """
    from agent.cli.status import show

    raise typer.Exit(show(config, json))


@app.command()
def health(config: Config = DEFAULT, json: Json = False) -> None:
    """Have every part asked, and each domain run a small inference.

    Exit code: 0 healthy, 4 degraded, 5 unhealthy, 3 no agent answers.
    """
    from agent.cli.health import show

    raise typer.Exit(show(config, json))


@app.command()
def conditions(config: Config = DEFAULT, json: Json = False) -> None:
    """Show what is wrong now, since when, and what to do about it. Exit code as of `status`."""
    from agent.cli.status import show_conditions

    raise typer.Exit(show_conditions(config, json))


@app.command()
def logs(
    count: Annotated[int, typer.Option(min=1, max=1000, help="So many lines, the last.")] = 100,
    level: Annotated[
        str, typer.Option(help="Only from this level on: debug, info, warning or error.")
    ] = "debug",
    follow: Annotated[bool, typer.Option("--follow", "-f", help="And those to come.")] = False,
    config: Config = DEFAULT,
    json: Json = False,
) -> None:
    """Show the last lines of the agent's log; it keeps them in memory, for as long as it runs.

    Exit code 3 when no agent answers: then the journal has them, or the terminal it ran in.
    """
    from agent.cli.logs import show

    show(config, count, level, follow=follow, as_json=json)


@app.command("support-bundle")
def support_bundle(
    file: Annotated[
        Path | None, typer.Argument(help="Where to; by default a name of its own, here.")
    ] = None,
    config: Config = DEFAULT,
    json: Json = False,
) -> None:
    """Write one archive for whoever looks into this device: no secrets are in it, and no sound.

    Exit code 3 when no agent answers: then it has what lies on the disk, and the journal.
    """
    from agent.cli.support import write

    raise typer.Exit(write(config, file, json))


def main() -> None:
    """The entry point: errors of ours end with a message, a hint and their exit code."""
    try:
        app()
    except HoldfastError as error:
        sys.exit(error.told())

"""`holdfast outbox`: what waits for the cloud, whether it adds up, and what to do about it.

The commands ask the agent. With the agent down, `ls` and `verify` read its store in place.
"""

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any
from urllib.parse import quote

import typer

from agent.cli.options import DEFAULT, Config, Json
from agent.errors import AgentSilent, AgentUnreachable, HoldfastError, NotNow

if TYPE_CHECKING:  # what a command needs, it loads itself: `--help` needs none of it
    from agent.cli.client import Client
    from agent.config import Config as Settings

app = typer.Typer(help="The records that wait for the cloud, and the ledger.", no_args_is_help=True)
OUTBOX = "/api/v1/outbox"
VERIFY = f"{OUTBOX}/verify"
UNBALANCED = 6
POLL_S = 0.1
Stream = Annotated[str, typer.Argument(help="A stream, as `holdfast outbox ls` names it.")]
Epoch = Annotated[
    str, typer.Option("--epoch", help="Of a former store that was saved into this one.")
]


@app.command("ls")
def ls(config: Config = DEFAULT, as_json: Json = False) -> None:
    """One line for each stream. Without an agent, the store is read in place."""
    settings = _settings(config)

    def offline() -> dict[str, Any]:
        from agent.cli.offline import streams

        return streams(settings)

    document = _ask_or(settings, lambda: _client(settings).get(OUTBOX), offline)
    if as_json:
        print(json.dumps(document))
        return
    from agent.cli.outbox_view import streams

    streams(document)


@app.command("show")
def show(
    stream: Stream,
    seq: Annotated[int | None, typer.Argument(help="One record, with its body.")] = None,
    first: Annotated[int, typer.Option("--from", help="Begin with this seq.")] = 1,
    count: Annotated[int, typer.Option(help="So many at most, 1000 or less.")] = 20,
    dead: Annotated[bool, typer.Option("--dead", help="Dead letters alone.")] = False,
    epoch: Epoch = "",
    config: Config = DEFAULT,
    as_json: Json = False,
) -> None:
    """The held records of a stream and what of it was dropped, or one record with its body."""
    from agent.cli.outbox_view import page, record

    route = _route(stream)
    if seq is None:
        query = _query(**{"from": first}, count=count, dead=str(dead).lower(), epoch=epoch)
    else:
        route, query = f"{route}/{seq}", _query(epoch=epoch)
    document = _client(_settings(config)).get(f"{route}{query}")
    if as_json:
        print(json.dumps(document))
    elif seq is None:
        page(document, dead=dead)
    else:
        record(document)


@app.command("verify")
def verify(
    deep: Annotated[bool, typer.Option("--deep", help="Read and check all audio too.")] = False,
    config: Config = DEFAULT,
    as_json: Json = False,
) -> None:
    """Count every record, and compare with the ledger. Exit code 6 when it does not add up.

    Without an agent, the store is read in place; none can start until that is done.
    """
    settings = _settings(config)
    tell = _progress if sys.stderr.isatty() else _silent

    def offline() -> dict[str, Any]:
        from agent.cli.offline import verify

        return verify(settings, deep=deep, tell=tell)

    report = _ask_or(settings, lambda: _verified(settings, deep, tell), offline)
    if tell is _progress:
        print("\r\033[K", end="", file=sys.stderr)
    if as_json:
        print(json.dumps(report))
    else:
        from agent.cli.outbox_view import report as show_report

        show_report(report)
    raise typer.Exit(0 if report["balanced"] else UNBALANCED)


@app.command("drop")
def drop(
    stream: Stream,
    first: Annotated[int, typer.Argument(help="The seq to begin with.")],
    last: Annotated[
        int | None, typer.Argument(help="The last one; without it, just FIRST.")
    ] = None,
    *,
    reason: Annotated[str, typer.Option("--reason", help="Why; it stands in the agent's log.")],
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    epoch: Epoch = "",
    config: Config = DEFAULT,
    as_json: Json = False,
) -> None:
    """Give held records up for good. The ledger counts them as dropped by the operator."""
    client = _client(_settings(config))
    which = f"#{first}" if last in (None, first) else f"#{first} to #{last}"
    _confirm(f"Give up {which} of {stream} for good?", yes)
    order = {"first": first, "last": first if last is None else last, "reason": reason}
    dropped, following = 0, first
    while following is not None:
        answer = client.post(
            f"{_route(stream)}/drop", {**order, "first": following, "epoch": epoch or None}
        )
        dropped, following = dropped + answer["dropped"], answer["next"]
    if as_json:
        print(json.dumps({"dropped": dropped}))
    else:
        said = f"given up: {dropped:,} of what is held" if dropped else "nothing of it is held"
        typer.echo(f"{stream} {which}: {said}")


@app.command("retry")
def retry(
    stream: Stream,
    seqs: Annotated[list[int] | None, typer.Argument(help="Dead letters; none: all.")] = None,
    epoch: Epoch = "",
    config: Config = DEFAULT,
    as_json: Json = False,
) -> None:
    """Have dead letters tried once more. `show STREAM --dead` says what becomes of them."""
    client = _client(_settings(config))
    total: dict[str, Any] = {"retrying": 0, "sending": 0, "damaged": [], "listening": False}
    following = 1
    while following is not None:
        order = {"seqs": seqs or [], "first": following, "epoch": epoch or None}
        answer = client.post(f"{_route(stream)}/retry", order)
        total["retrying"] += answer["retrying"]
        total["sending"] += answer["sending"]
        total["damaged"] += answer["damaged"]
        total["listening"] = answer["listening"]
        following = answer["next"]
    if as_json:
        print(json.dumps(total))
        return
    typer.echo(f"{stream}: dead letters to be tried again: {total['retrying']:,}")
    if total["retrying"] > total["sending"] and not total["listening"]:
        typer.echo("  its source is not heard now: they are, once the agent has been restarted")
    if total["damaged"]:
        typer.echo(
            f"  damaged, so not to be tried again: {', '.join(f'#{n}' for n in total['damaged'])}"
        )


def _settings(config: Path) -> "Settings":
    from agent import config_file

    return config_file.load(config)


def _client(settings: "Settings") -> "Client":
    from agent.cli.client import Client

    return Client(Path(settings.api.socket))


def _ask_or(
    settings: "Settings",
    ask: Callable[[], dict[str, Any]],
    offline: Callable[[], dict[str, Any]],
) -> dict[str, Any]:
    """What the agent says; without one, what its store says."""
    try:
        return {**ask(), "offline": False}
    except AgentSilent:
        raise
    except AgentUnreachable:
        if not Path(settings.store.path).exists():
            raise
        return {**offline(), "offline": True}


def _verified(settings: "Settings", deep: bool, tell: Callable[[int, int], None]) -> dict[str, Any]:
    """Have the agent verify, and wait for it; another's that is as deep will do."""
    client = _client(settings)
    query = _query(deep=str(deep).lower())
    state = client.post(f"{VERIFY}{query}")
    while state["running"] or (deep and not state["deep"]):
        tell(state["counted"], state["total"])
        time.sleep(POLL_S)
        state = client.get(VERIFY)
        if deep and not state["deep"] and not state["running"]:
            state = client.post(f"{VERIFY}{query}")
    if state["failure"]:
        raise HoldfastError(state["failure"]["error"], state["failure"]["hint"])
    report: dict[str, Any] = state["report"]
    return report


def _progress(counted: int, total: int) -> None:
    print(f"\r\033[Kcounted {counted:,} of {total:,}", end="", file=sys.stderr, flush=True)


def _silent(_counted: int, _total: int) -> None:
    """Nobody looks."""


def _confirm(question: str, yes: bool) -> None:
    if yes:
        return
    if not sys.stdin.isatty():
        raise NotNow(f"{question} There is no terminal to ask at", "say it with --yes")
    typer.confirm(question, abort=True)


def _route(stream: str) -> str:
    return f"{OUTBOX}/{quote(stream.encode(errors='surrogateescape'), safe='')}"


def _query(**values: Any) -> str:
    said = "&".join(f"{key}={quote(str(value))}" for key, value in values.items() if value != "")
    return f"?{said}" if said else ""

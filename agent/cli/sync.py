"""`holdfast sync`: how the link goes, and orders to it."""

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from agent.cli.options import DEFAULT, Config, Json

if TYPE_CHECKING:  # what a command needs, it loads itself: `--help` needs none of it
    from agent.cli.client import Client

app = typer.Typer(help="The link to the cloud: how it goes, and orders to it.")
SYNC = "/api/v1/sync"
SECONDS = {"s": 1, "m": 60, "min": 60, "h": 3600, "d": 86_400}
BYTES = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30}


def seconds(text: str) -> float:
    """`2h`, `90 min`, `45s`, `1.5d`. Raises typer.BadParameter."""
    from agent.forms import SECONDS_MAX, SECONDS_MIN

    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(s|m|min|h|d)", text.strip(), re.ASCII)
    if match is None:
        raise typer.BadParameter(f"expected a span as 45s, 90min, 2h or 1d, found {text!r}")
    found_s = float(match[1]) * SECONDS[match[2]]
    if not SECONDS_MIN <= found_s <= SECONDS_MAX:
        raise typer.BadParameter(
            f"expected a span of {SECONDS_MIN:g}s to {SECONDS_MAX // SECONDS['d']}d, found {text!r}"
        )
    return found_s


def rate(text: str) -> int | None:
    """`64k`, `1.5M`, `2048`: bytes in a second; `off`: none. Raises typer.BadParameter."""
    from agent.forms import RATE_BYTES_PER_S_MAX, RATE_BYTES_PER_S_MIN

    if text == "off":
        return None
    match = re.fullmatch(
        r"(\d+(?:\.\d+)?)\s*([kmg]?)(?:i?b)?(?:/s)?", text.strip().lower(), re.ASCII
    )
    if match is None:
        raise typer.BadParameter(
            f"expected bytes in a second as 64k, 1.5M or 2048, or off, found {text!r}"
        )
    bytes_per_s = float(match[1]) * BYTES[match[2]]
    if not RATE_BYTES_PER_S_MIN <= bytes_per_s <= RATE_BYTES_PER_S_MAX:  # or infinite: no int
        raise typer.BadParameter(
            f"expected {RATE_BYTES_PER_S_MIN >> 10}k to {RATE_BYTES_PER_S_MAX >> 30}g in a "
            f"second, found {text!r}"
        )
    return round(bytes_per_s)


For = Annotated[
    float | None,
    typer.Option("--for", parser=seconds, metavar="SPAN", help="For so long, as 45s, 90min, 2h."),
]


@app.callback(invoke_without_command=True)
def show(context: typer.Context, config: Config = DEFAULT, as_json: Json = False) -> None:
    """How the link goes: who acks, what waits and until when, the rate, the quota, the last ack."""
    if context.invoked_subcommand is None:
        _print(_client(config).get(SYNC), as_json)
        return
    for name in ("config", "as_json"):  # else an order would go to another agent than was named
        source = context.get_parameter_source(name)
        if source is not None and source.name == "COMMANDLINE":
            raise typer.BadParameter(f"write options behind `{context.invoked_subcommand}`")


@app.command("now")
def now(
    unlimited: Annotated[
        float | None,
        typer.Option(
            parser=seconds, metavar="SPAN", help="Without a rate for so long; the quota holds."
        ),
    ] = None,
    config: Config = DEFAULT,
    as_json: Json = False,
) -> None:
    """Connect and send at once what could go, whatever wait is on."""
    order = {} if unlimited is None else {"unlimited_s": unlimited}
    _print(_client(config).post(f"{SYNC}/now", order), as_json)


@app.command("pause")
def pause(for_s: For = None, config: Config = DEFAULT, as_json: Json = False) -> None:
    """Send nothing, for a time or until `resume`, over restarts too. Heartbeats go on."""
    _print(_client(config).post(f"{SYNC}/pause", _for(for_s)), as_json)


@app.command("resume")
def resume(config: Config = DEFAULT, as_json: Json = False) -> None:
    """Send again."""
    _print(_client(config).post(f"{SYNC}/resume", {}), as_json)


@app.command("limit")
def limit(
    most: Annotated[
        str, typer.Argument(metavar="RATE", help="Bytes in a second, as 64k or 1.5M; off: none.")
    ],
    for_s: For = None,
    config: Config = DEFAULT,
    as_json: Json = False,
) -> None:
    """Send at this rate in place of the configured ones, over restarts too; `off` ends it."""
    most_bytes = rate(most)
    if most_bytes is None and for_s is not None:
        raise typer.BadParameter(
            "off takes no --for; to send without a rate for a while: "
            "holdfast sync now --unlimited SPAN"
        )
    order = {"rate_bytes_per_s_max": most_bytes, **_for(for_s)}
    _print(_client(config).post(f"{SYNC}/limit", order), as_json)


def _for(for_s: float | None) -> dict[str, float]:
    return {} if for_s is None else {"for_s": for_s}


def _client(config: Path) -> "Client":
    from agent.cli.client import Client

    return Client.of(config)


def _print(document: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print(json.dumps(document))
        return
    from agent.cli.sync_view import state

    state(document)

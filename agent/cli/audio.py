"""`holdfast audio`: have a recording heard."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any
from urllib.parse import quote, urlencode

import typer

from agent.cli.options import DEFAULT, Config, Json
from agent.errors import RequestError

if TYPE_CHECKING:  # what a command needs, it loads itself: `--help` needs none of it
    from agent.cli.client import Client

app = typer.Typer(help="Recordings: have them heard.", no_args_is_help=True)
AUDIO = "/api/v1/audio"
WAIT_S, MARGIN_S = 240.0, 60.0
Source = Annotated[str, typer.Option(help="The source that it is to be of.")]


@app.command("send")
def send(
    file: Annotated[Path, typer.Argument(help="WAV, FLAC, Ogg Opus, Ogg Vorbis, AIFF or MP3.")],
    source: Source = "api",
    wait: Annotated[bool, typer.Option(help="Until it is heard, for some minutes.")] = True,
    config: Config = DEFAULT,
    as_json: Json = False,
) -> None:
    """Hand a recording in, and show its segments; the same file twice is one recording."""
    name = file.name.encode(errors="surrogateescape").decode(errors="replace")[:200]
    asked = {"source": source, "name": name, "wait": "true" if wait else "false", "wait_s": WAIT_S}
    try:
        with file.open("rb") as content:
            document = _client(config).upload(f"{AUDIO}?{urlencode(asked)}", content)
    except OSError as error:
        raise RequestError(f"{file}: {error.strerror}", "name a recording") from error
    _print(document, as_json)


@app.command("show")
def show(
    take: Annotated[int, typer.Argument(help="The number that `send` told.")],
    source: Source = "api",
    config: Config = DEFAULT,
    as_json: Json = False,
) -> None:
    """How far a recording is, and its segments: those that are held, and those made lately."""
    _print(_client(config).get(f"{AUDIO}/takes/{quote(source, safe='')}/{take}"), as_json)


def _client(config: Path) -> "Client":
    from agent.cli.client import Client

    return Client.of(config, WAIT_S + MARGIN_S)


def _print(document: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print(json.dumps(document))
        return
    from rich.table import Table

    from agent.cli.screen import Console

    table = Table(box=None)
    for heading in ("segment", "from s", "length s", "speech"):
        table.add_column(heading, justify="left" if heading == "segment" else "right")
    for one in document["segments"]:
        place = f"{one['stream']} #{one['seq']}"
        numbers = (one["start_s"], one["length_s"], one["speech"])
        table.add_row(place, *(f"{number:.2f}" for number in numbers))
    console = Console()
    console.print(
        f"{document['name']}: {document['length_s']:.1f} s, take {document['take']} of source"
        f" {document['source']}, {document['status']}",
        markup=False,
    )
    if document["segments"]:
        console.print(table)
    if document["status"] != "heard":
        console.print(
            f"look again: holdfast audio show {document['take']} --source {document['source']}",
            markup=False,
        )

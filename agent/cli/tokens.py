"""`holdfast tokens`: what lets programs and people in by HTTP."""

import json
from pathlib import Path
from typing import Annotated
from urllib.parse import quote

import typer

from agent.cli.options import DEFAULT, Config, Json
from agent.forms import SCOPES

app = typer.Typer(help="API tokens: who may do what over HTTP.", no_args_is_help=True)
TOKENS = "/api/v1/tokens"


def _known(scopes: list[str]) -> list[str]:
    """Raises typer.BadParameter."""
    for one in scopes:
        if one not in SCOPES:
            raise typer.BadParameter(f"{one!r} is no scope; there are {', '.join(SCOPES)}")
    return scopes


@app.command("create")
def create(
    name: Annotated[
        str, typer.Argument(metavar="NAME", help="The program or person that will use it.")
    ],
    scope: Annotated[
        list[str],
        typer.Option(
            metavar="SCOPE",
            callback=_known,
            help=f"One of {', '.join(SCOPES)}; give it once for each. None implies another.",
        ),
    ],
    config: Config = DEFAULT,
    as_json: Json = False,
) -> None:
    """Make a token. It is shown this once: the device keeps only a hash of it."""
    from agent import config_file
    from agent.cli.client import Client

    api = config_file.load(config).api
    order = {"name": name, "scopes": scope}
    document = Client(Path(api.socket)).post(TOKENS, order)
    if as_json:
        print(json.dumps(document))
        return
    from agent.cli.tokens_view import made

    made(document, "https" if api.tls else "http", api.host, api.port)


@app.command("ls")
def ls(config: Config = DEFAULT, as_json: Json = False) -> None:
    """One line for each token, the oldest first."""
    from agent.cli.client import Client

    document = Client.of(config).get(TOKENS)
    if as_json:
        print(json.dumps(document))
        return
    from agent.cli.tokens_view import tokens

    tokens(document)


@app.command("revoke")
def revoke(
    token: Annotated[
        str, typer.Argument(metavar="ID", help="A token, as `holdfast tokens ls` names it.")
    ],
    config: Config = DEFAULT,
    as_json: Json = False,
) -> None:
    """Take a token back, at once: its sessions and streams end too."""
    from agent.cli.client import Client

    route = f"{TOKENS}/{quote(token.encode(errors='surrogateescape'), safe='')}"
    document = Client.of(config).delete(route)
    typer.echo(json.dumps(document) if as_json else f"token {document['id']} lets nobody in")

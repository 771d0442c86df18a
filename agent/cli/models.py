"""`holdfast models`: what is installed, whether it is whole, and new versions of it.

All but load, unload and rollback need no agent. What reads or makes a model does so in a process of
its own: a model is a stranger's file.
"""

import json
import os
import subprocess
import sys
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn
from urllib.parse import quote

import typer

from agent.cli.options import DEFAULT, Config, Json
from agent.errors import AgentUnreachable, RequestError

if TYPE_CHECKING:  # what a command needs, it loads itself
    from agent.config import Models

app = typer.Typer(help="The models on disk, and which of them serve.", no_args_is_help=True)
CATALOG = "agent.inference.catalog"
PROVE_S_MAX = 300.0  # a large model is read, loaded and tried out


class Ep(StrEnum):
    """Where a model is to run."""

    CPU = "cpu"
    CUDA = "cuda"
    TENSORRT = "tensorrt"


SignedBy = Annotated[
    list[str],
    typer.Option(
        "--signed-by",
        help="A public key; one of them must have signed. Without: models.signed_by.",
    ),
]


@app.command("ls")
def ls(config: Config = DEFAULT, as_json: Json = False) -> None:
    """One line for each version, and which of them serves; nothing is checked."""
    document, code = _asked(CATALOG, "ls", "--", _root(config))
    document["models"] = _with_service(document["models"], _serving(config))
    _end("ls", document, code, as_json)


@app.command("verify")
def verify(
    which: Annotated[str, typer.Argument(metavar="[NAME[/VERSION]]", help="Without: all.")] = "",
    ep: Annotated[
        list[Ep], typer.Option("--ep", help="Where it is to run; may be given again.")
    ] = [Ep.CPU],  # noqa: B006 - typer copies it
    signed_by: SignedBy = [],  # noqa: B006
    config: Config = DEFAULT,
    as_json: Json = False,
) -> None:
    """Check versions as before they are loaded: digests, signature, form, golden files, operators.

    Exit code 1 when one of them would be refused.
    """
    settings = _models(config)
    keys = [word for key in signed_by or settings.signed_by for word in ("--signed-by", key)]
    eps = [word for one in ep for word in ("--ep", one)]
    words = [settings.path, which] if which else [settings.path]
    document, code = _asked(CATALOG, "verify", *keys, *eps, "--", *words)
    _end("verify", document, code, as_json)


@app.command("sign")
def sign(
    folder: Annotated[Path, typer.Argument(help="Of a version: models/NAME/VERSION.")],
    key: Annotated[
        Path, typer.Option("--key", help="The private key's file; made if it is not there.")
    ],
    as_json: Json = False,
) -> None:
    """Vouch for a version, for devices whose `models.signed_by` names the key."""
    document, code = _asked(CATALOG, "sign", "--key", str(key), "--", str(folder))
    _end("sign", document, code, as_json)


@app.command("quantize")
def quantize(
    which: Annotated[str, typer.Argument(metavar="NAME/VERSION")],
    to: Annotated[int, typer.Option("--to", min=1, help="The new version.")],
    *,
    static: Annotated[
        bool | None,
        typer.Option(
            "--static/--dynamic",
            help="Convolutions and Gemm, by measured ranges; or MatMul. Without: by the model.",
        ),
    ] = None,
    calibration: Annotated[
        Path | None, typer.Option("--calibration", help="A folder of npz files with inputs.")
    ] = None,
    error_max: Annotated[
        float, typer.Option("--error-max", min=0, help="Of the outputs, relative; else no version.")
    ] = 0.1,
    config: Config = DEFAULT,
    as_json: Json = False,
) -> None:
    """Write a new version with INT8 weights, and say how far it is off and how fast it is."""
    words = ["--to", str(to), "--error-max", str(error_max)]
    if static is not None:
        words += ["--method", "static" if static else "dynamic"]
    if calibration is not None:
        words += ["--calibration", str(calibration)]
    document, code = _asked(f"{CATALOG}.quantize", *words, "--", _root(config), which)
    _end("quantize", document, code, as_json)


@app.command("load")
def load(
    which: Annotated[str, typer.Argument(metavar="NAME[/VERSION]", help="Without: the newest.")],
    config: Config = DEFAULT,
    as_json: Json = False,
) -> None:
    """Have a version serve, once it has shown that it may; until then, and if not, the former."""
    name, _, version = which.partition("/")
    if version and not version.isdigit():
        raise RequestError(f"{which}: {version!r} is no version", "write NAME/2, as ls shows them")
    order = {"version": int(version)} if version else {}
    done = _order(config, name, "load", order)
    _say(done, f"{done['model']} serves", as_json)


@app.command("unload")
def unload(name: str, config: Config = DEFAULT, as_json: Json = False) -> None:
    """Have a model serve no longer, until it is loaded again."""
    _say(_order(config, name, "unload"), f"{name} serves no longer", as_json)


@app.command("rollback")
def rollback(name: str, config: Config = DEFAULT, as_json: Json = False) -> None:
    """Have the version serve that served before."""
    done = _order(config, name, "rollback")
    _say(done, f"{done['model']} serves again", as_json)


def _end(command: str, document: dict[str, Any], code: int, as_json: bool) -> NoReturn:
    """Show a command's document, to programs or to people, and end with the exit code."""
    if as_json:
        print(json.dumps(document))
    else:
        from agent.cli.models_view import VIEWS

        VIEWS[command](document)
    raise typer.Exit(code)


def _order(
    config: Path, name: str, what: str, order: dict[str, Any] | None = None
) -> dict[str, Any]:
    from agent.cli.client import Client

    route = f"/api/v1/models/{quote(os.fsencode(name), safe='')}/{what}"
    return Client.of(config, PROVE_S_MAX).post(route, order)


def _say(document: dict[str, Any], words: str, as_json: bool) -> None:
    typer.echo(json.dumps(document) if as_json else words)


def _serving(config: Path) -> dict[str, Any]:
    """What the agent says of its models; nothing where none runs."""
    from agent.cli.client import Client

    try:
        return Client.of(config).get("/api/v1/models")
    except AgentUnreachable:
        return {}


def _with_service(rows: list[dict[str, Any]], serving: dict[str, Any]) -> list[dict[str, Any]]:
    """Each version with what it does in the agent that runs."""
    marked = []
    for row in rows:
        one = serving.get(row["name"], {})
        serves = one.get("version", 0) == row["version"]  # null: its folder cannot be read
        service = {
            "serves": serves,
            "former": row["version"] is not None and one.get("previous") == row["version"],
            "breaker": one["breaker"] if serves else None,
            "instead_of": one["instead_of"] if serves else None,
        }
        warnings = one["warnings"] if serves else row.get("warnings", [])
        marked.append({**row, **service, "warnings": warnings})
    return marked


def _models(config: Path) -> "Models":
    from agent import config_file

    return config_file.load(config).models


def _root(config: Path) -> str:
    return _models(config).path


def _asked(module: str, *words: str) -> tuple[dict[str, Any], int]:
    """A module's document and exit code; the module itself says what went wrong.

    What people typed comes after `--`: it may begin with a dash.
    """
    # -P: a module in the working directory is not ours to load.
    done = subprocess.run([sys.executable, "-P", "-m", module, *words], stdout=subprocess.PIPE)
    if not done.stdout:
        raise typer.Exit(done.returncode if done.returncode > 0 else 1)
    return json.loads(done.stdout), done.returncode

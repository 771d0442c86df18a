"""What several commands take."""

from pathlib import Path
from typing import Annotated

import typer

Database = Annotated[
    str,
    typer.Option(
        "--database",
        envvar="HOLDFAST_FLEET_DATABASE",
        help="sqlite:///PATH or postgresql://USER:PASSWORD@HOST/NAME",
    ),
]
Json = Annotated[bool, typer.Option("--json", help="The document, for programs.")]
SQLITE = "sqlite:///var/fleet.db"
FLEET_KEY = Path("var/fleet.key")
FLEET_KEY_ENV = "HOLDFAST_FLEET_KEY"

# The way to the broker.
Url = Annotated[str, typer.Option(help="mqtt://HOST[:PORT] or mqtts://HOST[:PORT]")]
Prefix = Annotated[str, typer.Option("--prefix", help="The devices' link.topic_prefix.")]
Username = Annotated[str | None, typer.Option()]
PasswordFile = Annotated[str | None, typer.Option(help="A file: no secret in `ps`.")]
CaFile = Annotated[str | None, typer.Option(help="Who signs the broker's certificate.")]
CertFile = Annotated[str | None, typer.Option(help="This client's certificate.")]
KeyFile = Annotated[str | None, typer.Option(help="Its key.")]
ConnectSeconds = Annotated[float, typer.Option(min=0.1)]
MetricsPort = Annotated[int, typer.Option(min=0, max=65_535, help="Prometheus' metrics; 0: none.")]
Word = Annotated[str, typer.Option()]

# Which devices, and what of them.
Devices = Annotated[
    list[str] | None, typer.Option("--device", help="This device; may be said again.")
]
Tags = Annotated[
    list[str] | None,
    typer.Option("--tag", help="Devices with this tag; said again: with all of these."),
]
ListFile = Annotated[
    Path | None,
    typer.Option("--list", help="A file with a device in each line; -: standard input."),
]
Everybody = Annotated[bool, typer.Option("--all", help="Every device that is known.")]
Args = Annotated[str, typer.Option("--args", help="The command's arguments, a JSON object.")]
Sign = Annotated[
    Path | None, typer.Option("--sign", help="Signed with the private key in this file.")
]
Issuer = Annotated[
    str, typer.Option("--issuer", help="Who orders it: a label. None: this user's name.")
]

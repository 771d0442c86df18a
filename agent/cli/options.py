"""What every command takes."""

from pathlib import Path
from typing import Annotated

import typer

Config = Annotated[
    Path, typer.Option("--config", "-c", envvar="HOLDFAST_CONFIG", help="The configuration file.")
]
Json = Annotated[bool, typer.Option("--json", help="The document, for programs.")]
DEFAULT = Path("config/default.yaml")

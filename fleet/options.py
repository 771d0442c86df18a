"""What several commands take."""

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

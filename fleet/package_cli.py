"""`holdfast-fleet package`: a version of the agent, signed, for `agent.update`."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from agent.errors import HoldfastError


def package(
    wheels: Annotated[Path, typer.Argument(help="A folder with all wheels, that of Holdfast too.")],
    out: Annotated[Path, typer.Option(help="The file to write.")],
    key: Annotated[Path, typer.Option(help="Who signs: a file of a private key, made if absent.")],
    machine: Annotated[
        Literal["x86_64", "aarch64"], typer.Option(help="What the wheels are for (uname -m).")
    ],
    python: Annotated[str, typer.Option(help="The Python that they are for.")] = "3.11",
) -> None:
    """Write a version of the agent as one signed file.

    The devices take it whose /etc/holdfast/update.keys has the key that is printed.
    """
    try:
        said = _packed(wheels, out, key, machine, python)
    except HoldfastError as error:
        raise typer.Exit(error.told()) from error
    except OSError as error:
        raise typer.Exit(HoldfastError(f"{error.filename}: {error.strerror}").told()) from error
    print(said)


def _packed(
    wheels: Path, out: Path, key: Path, machine: Literal["x86_64", "aarch64"], python: str
) -> str:
    from agent.protocol import package, signing

    found = sorted(wheels.glob("*.whl"))
    versions = [one.name.split("-")[1] for one in found if one.name.startswith("holdfast-")]
    if len(versions) != 1:
        raise HoldfastError(
            f"{wheels}: {len(versions)} wheels of Holdfast; expected one",
            "pip wheel --no-deps --wheel-dir FOLDER . makes it (docs/agent-update.md)",
        )
    own, fresh = signing.Key.kept(key), out.with_name(f"{out.name}.new")
    with fresh.open("wb") as file:
        made = package.pack(file, found, versions[0], python, machine, own)
    fresh.replace(out)
    return f"{out}: version {made.version}, {len(found)} wheels, signed by {own.public}"

"""`holdfast bundle`: records leave on a stick, and acks come back on it.

Exit codes: 0 done; 7 a bundle was not taken (damaged, cut off, of a stranger, of another device),
or none was for this device;
8 an export is not finished (no room, stick gone): the parts that are whole stay, and `--continue`
goes on; 3 no agent answers.
"""

import hashlib
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from agent import plain_file
from agent.cli.options import DEFAULT, Config, Json
from agent.errors import BundleError, BundleUnfinished, HoldfastError
from agent.words import counted, printable

if TYPE_CHECKING:  # what a command needs, it loads itself: `--help` needs none of it
    from agent.cli.client import Client
    from agent.config import Config as Settings

app = typer.Typer(
    help="Records out, acks and commands in, across an air gap.", no_args_is_help=True
)
EXPORT = "/api/v1/bundle/export"
TOLD_S = 0.5
PART_MIB = 1024
PART_BYTES_MIN = 1 << 20
ACK_BYTES_MAX = 4 << 20  # the agent reads no more of an ack bundle
TAKEN = ("taken", "nothing_new")
Tell = Callable[[dict[str, Any]], None]  # a state of the export


@app.command("export")
def export(
    folder: Annotated[Path, typer.Argument(help="Where to: a folder on the stick.")],
    part_size: Annotated[
        int, typer.Option("--part-size", min=1, max=3800, help="MiB of a file, at most.")
    ] = PART_MIB,
    go_on: Annotated[
        bool, typer.Option("--continue", help="With the parts the last export still lacks.")
    ] = False,
    partial: Annotated[
        bool, typer.Option("--partial", help="As much as there is room for.")
    ] = False,
    config: Config = DEFAULT,
    as_json: Json = False,
) -> None:
    """Copy all that waits to a stick. Nothing is deleted here: only an ack bundle does that.

    Exit code 8: not all of it is there. The files that are named are whole.
    """
    from agent.cli import stick

    settings = _settings(config)
    to = stick.recipients(settings.bundle.recipients)
    client = _client(settings)
    stick.free_bytes(folder)  # whether it can be written to at all, before anything is done
    stick.tidy(folder)
    if go_on:
        state = client.get(EXPORT)
    else:
        state = _begin(client, folder, part_size << 20, partial=partial)
    away = stick.is_away(folder, Path(settings.store.path))
    files: list[dict[str, Any]] = []
    try:
        state = _write(client, state, folder, to, files, quiet=as_json)
    except HoldfastError as error:
        _say_unfinished(files, state, error, as_json=as_json)
        raise typer.Exit(BundleUnfinished.exit_code) from error
    _say_done(files, state, folder, away=away, as_json=as_json)


@app.command("import")
def import_(
    paths: Annotated[
        list[Path], typer.Argument(help="Bundles of the fleet, or folders with such.")
    ],
    config: Config = DEFAULT,
    as_json: Json = False,
) -> None:
    """Take what the fleet sent: acks, which delete here what is stored there, and commands.

    In a folder, bundles for other devices are passed over. Exit code 7: one was not taken, or
    none was for this device.
    """
    from agent.cli.client import Refused

    client = _client(_settings(config))
    results: list[dict[str, Any]] = []
    for path, named in _ack_bundles(paths):
        try:
            found = client.upload("/api/v1/bundle/ack", _content(path))
        except Refused as error:
            verdict = error.document.get("verdict", "failed")
            found = {"verdict": verdict, "error": str(error), "hint": error.hint}
        except BundleError as error:
            found = {"verdict": error.verdict, "error": str(error), "hint": error.hint}
        results.append({"file": str(path), "named": named, **found})
    failed = [
        one
        for one in results
        if one["verdict"] not in TAKEN and (one["named"] or one["verdict"] != "wrong_device")
    ]
    if as_json:
        print(json.dumps({"files": results}))
    else:
        from agent.cli.bundle_view import imported

        imported(results)
    none = not any(one["verdict"] in TAKEN for one in results)
    raise typer.Exit(BundleError.exit_code if failed or none else 0)


@app.command("key")
def key(config: Config = DEFAULT, as_json: Json = False) -> None:
    """The device's public key, for `holdfast-fleet bundle trust`."""
    found = _client(_settings(config)).get("/api/v1/bundle/key")
    print(json.dumps(found) if as_json else printable(found["key"]))


@app.command("check")
def check(
    file: Annotated[Path, typer.Argument(help="A bundle.")],
    config: Config = DEFAULT,
    as_json: Json = False,
) -> None:
    """Read a bundle to its end, and say what it is. Needs no agent. Exit code 7: it is not whole.

    What is encrypted can be checked only where its identity is: `holdfast-fleet bundle check`.
    """
    from agent.cli.bundle_check import checked

    found = checked(file, _settings(config))
    if as_json:
        print(json.dumps(found))
    else:
        from agent.cli.bundle_view import checked as show

        show(found)
    raise typer.Exit(0 if found["verdict"] == "whole" else BundleError.exit_code)


def _settings(config: Path) -> "Settings":
    from agent import config_file

    return config_file.load(config)


def _client(settings: "Settings") -> "Client":
    from agent.cli.client import Client

    return Client(Path(settings.api.socket))


def _begin(client: "Client", folder: Path, part_bytes: int, *, partial: bool) -> dict[str, Any]:
    """A new export, if there is room for it; with `partial`, for a part of it."""
    from agent.cli import stick
    from agent.cli.units import size

    free = stick.free_bytes(folder)
    if partial:
        part_bytes = max(PART_BYTES_MIN, min(part_bytes, int(free * 0.9)))
    state = client.post(EXPORT, {"part_bytes": part_bytes})
    # Records shrink when they are packed, audio does not.
    if state["size_bytes"] > free and not partial:
        raise BundleUnfinished(
            f"{folder}: {size(free)} are free, and up to {size(state['size_bytes'])} wait",
            "take a larger stick; or write what fits with --partial, and the rest to another with "
            "--continue",
        )
    return state


def _write(
    client: "Client",
    state: dict[str, Any],
    folder: Path,
    to: list[Any],
    files: list[dict[str, Any]],
    *,
    quiet: bool,
) -> dict[str, Any]:
    """Write all parts that are left, each noted in `files`; the export's last state.

    Raises as `_part` does.
    """
    from agent.cli.bundle_view import Progress

    with Progress(quiet=quiet) as progress:
        while state["part_next"]:
            file = _part(client, state, folder, to, progress.tell)
            files.append(file)
            progress.wrote(file)
            state = client.post(f"{EXPORT}/{state['export']}/{file['part']}/kept")
    return state


def _part(
    client: "Client", state: dict[str, Any], folder: Path, to: list[Any], tell: Tell
) -> dict[str, Any]:
    """Write the next part; what it is. Raises BundleUnfinished, AgentUnreachable, Refused."""
    from agent.cli import stick

    number = state["part_next"]
    suffix = ".hfb.age" if to else ".hfb"
    path = folder / f"holdfast-{state['device']}-{state['export']}-{number:04}{suffix}"
    digest, told_at = hashlib.sha256(), time.monotonic()
    made: dict[str, Any] = {}

    def checked() -> None:
        """What came is what the agent made, to its end."""
        made.update(client.get(EXPORT))
        if made["failure"] or (made["part"], made["part_digest"]) != (number, digest.hexdigest()):
            why = made["failure"] or "another export has begun, or what came is not all"
            raise BundleUnfinished(f"{path}: {why}", "export again")

    with client.download(f"{EXPORT}/{state['export']}/{number}") as read:

        def heard(size: int) -> bytes:
            nonlocal told_at
            step = read(size)
            digest.update(step)
            if time.monotonic() - told_at > TOLD_S:
                tell(client.get(EXPORT))
                told_at = time.monotonic()
            return step

        size_bytes = stick.write(path, heard, to, checked)
    tell(made)
    return {"file": str(path), "part": number, "size_bytes": size_bytes}


def _say_unfinished(
    files: list[dict[str, Any]], state: dict[str, Any], error: HoldfastError, *, as_json: bool
) -> None:
    if as_json:
        said = {"verdict": "unfinished", "error": str(error), "hint": error.hint}
        print(json.dumps({**said, "export": state["export"], "files": files}))
        return
    one, many = "file of this run is whole, and stays", "files of this run are whole, and stay"
    whole = counted(len(files), one, many) if files else "no file is whole"
    error.told()
    typer.echo(f"not finished: {whole}; nothing was deleted on the device", err=True)


def _say_done(
    files: list[dict[str, Any]],
    state: dict[str, Any],
    folder: Path,
    *,
    away: bool,
    as_json: bool,
) -> None:
    records = state["records_done"]
    if as_json:
        said = {"verdict": "done" if files else "nothing", "export": state["export"]}
        print(json.dumps({**said, "records": records, "away": away, "files": files}))
        return
    if not files:
        typer.echo("nothing is left to be written")
        return
    typer.echo(
        f"all that waited is there: {counted(records, 'record')} in {counted(len(files), 'file')}. "
        "They stay here, too, until the ack bundle comes back."
    )
    if away:
        typer.echo("Unmount the stick before you pull it.")
    else:
        typer.echo(
            f"WARNING: {folder} lies on a disk of this machine itself: no stick is mounted there. "
            "Mount one and export again, or copy the files to one.",
            err=True,
        )


def _ack_bundles(paths: list[Path]) -> list[tuple[Path, bool]]:
    """The files, and whether each was named itself."""
    found: list[tuple[Path, bool]] = []
    for path in paths:
        if not path.is_dir():
            found.append((path, True))
            continue
        within = sorted([*path.glob("*.ack.hfb"), *path.glob("*.cmd.hfb")])
        if not within:
            raise BundleError(
                f"{path}: no bundle of the fleet is there (*.ack.hfb, *.cmd.hfb)",
                "`holdfast-fleet bundle import` and `holdfast-fleet send --out` write them",
                "not_there",
            )
        found += [(one, False) for one in within]
    return found


def _content(path: Path) -> bytes:
    try:
        with plain_file.opened(path) as file:
            return file.read(ACK_BYTES_MAX)
    except OSError as error:
        raise BundleError(
            f"{path}: cannot be read: {error.strerror or error}",
            "check the stick",
            "unreadable",
        ) from error

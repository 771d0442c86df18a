"""`holdfast-fleet bundle`: sticks from devices that have no network.

Exit codes: 0 all is stored; 7 a file was not taken, and its verdict says why; 9 all files are
stored, but parts of their exports are missing; 75 another process, as an ingest, writes the SQLite
database.
"""

import asyncio
import json
import tempfile
from pathlib import Path
from typing import Annotated, Any, TypeVar

import msgspec
import typer

from agent.clock import Clock
from agent.errors import BundleError, NotThere
from agent.protocol import signing
from agent.words import counted, printable
from fleet.control.carrying import hearing, packed, written
from fleet.control.cli import asked
from fleet.options import FLEET_KEY, FLEET_KEY_ENV, SQLITE, Database, Devices, Json
from fleet.stick import stick
from fleet.stick.bundle import Imported, Sticks
from fleet.store import database
from fleet.store.cloud import Cloud

T = TypeVar("T")
app = typer.Typer(help="Bundles on sticks, from devices without a network.", no_args_is_help=True)
PARTS_MISSING = 9
KeyFile = Annotated[
    Path,
    typer.Option("--key-file", envvar=FLEET_KEY_ENV, help="The fleet's private key."),
]
Identity = Annotated[
    Path | None, typer.Option("--identity", help="age's, for bundles that are encrypted.")
]


@app.command("import")
def import_(
    files: Annotated[list[Path], typer.Argument(help="Bundles, or folders with such.")],
    database_url: Database = SQLITE,
    identity: Identity = None,
    ack_dir: Annotated[
        Path | None, typer.Option("--ack-dir", help="Where ack bundles go; none: beside the files.")
    ] = None,
    key_file: KeyFile = FLEET_KEY,
    as_json: Json = False,
) -> None:
    """Store what bundles carry, and write an ack bundle for each export.

    What is stored already is not stored again, so a file may be imported any number of times, and
    parts in any order. How commands ended that were ordered here, `commands` shows from then on.
    Exit codes: 7 a file was not taken, 9 parts are missing, 75 an ingest writes
    this SQLite database: stop it for the import, or use PostgreSQL.
    """
    identities, key = stick.identities(identity), signing.Key.kept(key_file)

    async def work() -> tuple[list[dict[str, Any]], list[str]]:
        async with (
            Cloud(database.open(database_url)) as cloud,
            hearing(database_url, asked.now_us) as hear,
        ):
            sticks = Sticks(cloud, identities, Clock(), hear)
            return await _import_all(sticks, _bundles(files), ack_dir, key)

    results, acks = asyncio.run(work())
    if as_json:
        print(json.dumps({"files": results, "acks": acks}))
    else:
        _show(results, acks)
    raise typer.Exit(_code(results))


@app.command("commands")
def commands(
    out: Annotated[Path, typer.Option("--out", help="The folder, as that of a stick.")],
    device: Devices = None,
    key_file: KeyFile = FLEET_KEY,
    database_url: Database = SQLITE,
    as_json: Json = False,
) -> None:
    """Write the bundles of all orders that are on their way by stick (`send --out`) once more."""
    key = signing.Key.kept(key_file)
    bundles = asked.asked(
        database_url, lambda one: packed(one, device or [], key, asked.now_us()), reads_only=True
    )
    if not bundles:
        raise NotThere(
            "no order is on its way by stick", "`holdfast-fleet send --out FOLDER` gives some"
        )
    paths = [str(one) for one in written(bundles, out)]
    print(json.dumps({"bundles": paths}) if as_json else "\n".join(paths))


@app.command("key")
def key(key_file: KeyFile = FLEET_KEY, as_json: Json = False) -> None:
    """The fleet's public key, for `bundle.fleet_keys` of the devices; made if there is none."""
    public = signing.Key.kept(key_file).public
    print(json.dumps({"key": public}) if as_json else public)


@app.command("trust")
def trust(
    device: Annotated[str, typer.Argument(help="The device's id.")],
    key: Annotated[str, typer.Argument(help="What `holdfast bundle key` says there.")],
    remove: Annotated[bool, typer.Option("--remove", help="Trust it no more.")] = False,
    database_url: Database = SQLITE,
    as_json: Json = False,
) -> None:
    """Believe bundles that this key has signed for this device.

    Exit code 75: an ingest writes this SQLite database. Stop it for a moment, or use PostgreSQL.
    """
    public = signing.public_key(key)

    async def work() -> bool:
        async with Cloud(database.open(database_url)) as cloud:
            sticks = Sticks(cloud, (), Clock())
            if remove:
                return await sticks.distrust(device, public)
            await sticks.trust(device, public)
            return True

    changed = asyncio.run(work())
    if as_json:
        print(json.dumps({"device": device, "key": public, "trusted": not remove}))
    elif remove:
        typer.echo(f"{device}: {'trusted no more' if changed else 'was not trusted'}: {public}")
    else:
        typer.echo(f"{device}: trusted: {public}")


@app.command("check")
def check(
    file: Annotated[Path, typer.Argument(help="A bundle.")],
    identity: Identity = None,
    as_json: Json = False,
) -> None:
    """Read a bundle to its end, and say what it is. Exit code 7: it is not whole."""
    identities = stick.identities(identity)
    try:
        with tempfile.TemporaryFile() as copy:
            sealed = stick.verified(file, copy, identities)
        found = {"verdict": "whole", "digest": sealed.digest, "size_bytes": sealed.size_bytes}
        found |= msgspec.to_builtins(sealed.header) | msgspec.to_builtins(sealed.footer)
    except BundleError as error:
        found = _said(error)
    if as_json:
        print(json.dumps({"file": str(file), **found}))
    else:
        _show_checked(file, found)
    raise typer.Exit(0 if found["verdict"] == "whole" else BundleError.exit_code)


async def _import_all(
    sticks: Sticks, paths: list[Path], ack_dir: Path | None, key: signing.Key
) -> tuple[list[dict[str, Any]], list[str]]:
    """What became of each file, and the ack bundles: one for each export, after its last file."""
    results: list[dict[str, Any]] = []
    done: dict[tuple[str, str], tuple[Imported, Path]] = {}
    for path in paths:
        try:
            imported = await sticks.take(path)
        except BundleError as error:
            results.append({"file": str(path), **_said(error)})
            continue
        results.append(msgspec.to_builtins(imported))
        done[imported.device, imported.export] = imported, ack_dir or path.parent
    for one in results:  # a later file may have brought what an earlier one missed
        last = done.get((one.get("device", ""), one.get("export", "")))
        if last:
            one["missing"], one["last_known"] = last[0].missing, last[0].last_known
    acks = []
    for last_one, folder in done.values():
        try:
            acks.append(str(await sticks.answer(last_one, folder, key)))
        except BundleError as error:  # the others are answered
            results.append({"file": last_one.file, **_said(error)})
    return results, acks


def _said(error: BundleError) -> dict[str, Any]:
    return {"verdict": error.verdict, "error": str(error), "hint": error.hint}


def _code(results: list[dict[str, Any]]) -> int:
    if any("error" in one for one in results):
        return BundleError.exit_code
    return PARTS_MISSING if any(_lacks(one) for one in results) else 0


def _lacks(one: dict[str, Any]) -> bool:
    return bool(one["missing"]) or not one["last_known"]


def _show(results: list[dict[str, Any]], acks: list[str]) -> None:
    for one in results:
        if "error" in one:
            word = "NOT ANSWERED" if one["verdict"] == "no_ack" else "NOT TAKEN"
            _echo(f"{one['file']}: {word} ({one['verdict']}): {one['error']}")
            _echo(f"  try: {one['hint']}")
            continue
        _echo(
            f"{one['file']}: {one['verdict']}: part {one['part']} of export {one['export']} of "
            f"{one['device']}, {counted(one['records_new'], 'record')} new, "
            f"{one['records_known']:,} known"
        )
        for note in one["notes"]:
            _echo(f"  {note}")
    for path in acks:
        _echo(f"{path}: take it back to the device (`holdfast bundle import`)")


def _show_checked(file: Path, found: dict[str, Any]) -> None:
    if "error" in found:
        _echo(f"{file}: {found['verdict']}: {found['error']}")
        _echo(f"  try: {found['hint']}")
        return
    _echo(
        f"{file}: whole: {found['kind']}, device {found['device']}, export {found['export']}, "
        f"part {found['part']}{', more follow' if found['more'] else ''}"
    )
    _echo(f"  {counted(found['records'], 'record')}, signed by {found['by']}")


def _echo(line: str) -> None:
    """A line; the name of a file on a stick may hold anything."""
    typer.echo(printable(line))


def _bundles(paths: list[Path]) -> list[Path]:
    """The files, and the bundles of data in the folders. Raises BundleError where none is."""
    found: list[Path] = []
    for path in paths:
        if not path.is_dir():
            found.append(path)
            continue
        within = sorted([*path.glob("*.hfb"), *path.glob("*.hfb.age")])
        within = [one for one in within if not one.name.endswith((".ack.hfb", ".cmd.hfb"))]
        if not within:
            raise BundleError(
                f"{path}: no bundle is there (*.hfb)",
                "`holdfast bundle export` writes them",
                "none",
            )
        found += within
    return found

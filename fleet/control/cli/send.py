"""`holdfast-fleet send` and `commands`.

Exit codes with --wait or --direct: 0 all succeeded, 10 not all did, 11 no last word in time.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from agent.errors import ConfigError, RequestError
from fleet.control.cli import NO_WORD, NOT_ALL
from fleet.options import (
    FLEET_KEY,
    FLEET_KEY_ENV,
    SQLITE,
    Args,
    CaFile,
    CertFile,
    Database,
    Devices,
    Everybody,
    Issuer,
    Json,
    KeyFile,
    ListFile,
    PasswordFile,
    Prefix,
    Sign,
    Tags,
    Username,
)

if TYPE_CHECKING:
    from collections.abc import Awaitable

    from fleet.control.book import Kept
    from fleet.control.cli.asked import Targets
    from fleet.control.orders import Order, Wish
    from fleet.mqtt.connection import Broker
    from fleet.store.database import Transaction

Name = Annotated[str, typer.Argument(help="The command, as sync.pause.")]
Id = Annotated[str, typer.Option("--id", help="Its id; the same id has one effect on a device.")]
Expires = Annotated[str, typer.Option(help="After that no device begins it: 90s, 2h, 7d, never.")]
Wait = Annotated[bool, typer.Option("--wait", help="Until each device has said its last word.")]
Timeout = Annotated[str, typer.Option(help="Wait so long, as 90s or 2h.")]
Files = Annotated[
    Path | None, typer.Option(help="Write the commands into this folder, and send nothing.")
]
Out = Annotated[
    Path | None, typer.Option(help="By stick: a bundle for each device into this folder.")
]
FleetKey = Annotated[
    Path, typer.Option(envvar=FLEET_KEY_ENV, help="With --out: whose signature the bundles have.")
]
Publish = Annotated[
    bool, typer.Option("--publish", help="With --out: let the controller give it, too.")
]
Direct = Annotated[bool, typer.Option("--direct", help="Over MQTT at once, without a database.")]
DirectTo = Annotated[str, typer.Option("--broker", help="With --direct: mqtt://HOST.")]
States = Annotated[list[str] | None, typer.Option("--state", help="In this state.")]
Ids = Annotated[list[str] | None, typer.Option("--id", help="Of this id.")]
Limit = Annotated[int, typer.Option(min=1, max=100_000, help="So many, the last changed first.")]


def send(
    name: Name,
    device: Devices = None,
    tag: Tags = None,
    list_: ListFile = None,
    everybody: Everybody = False,
    args: Args = "{}",
    expires: Expires = "7d",
    sign: Sign = None,
    id_: Id = "",
    issuer: Issuer = "",
    wait: Wait = False,
    timeout: Timeout = "60s",
    files: Files = None,
    out: Out = None,
    fleet_key: FleetKey = FLEET_KEY,
    publish: Publish = False,
    direct: Direct = False,
    broker: DirectTo = "",
    prefix: Prefix = "holdfast/v1",
    username: Username = None,
    password_file: PasswordFile = None,
    ca_file: CaFile = None,
    cert_file: CertFile = None,
    key_file: KeyFile = None,
    database: Database = SQLITE,
    as_json: Json = False,
) -> None:
    """Order something of devices.

    The order goes into the database; `holdfast-fleet control` gives it, once the device is there.
    With --out it goes by stick: take the bundles to the devices (`holdfast bundle import`).
    """
    from fleet.control.cli import asked
    from fleet.control.orders import Wish, duration_s, fresh_id
    from fleet.mqtt.connection import Broker

    if out is not None and (wait or direct or files is not None):
        raise RequestError(
            "--out with --wait, --direct or --files", "say one of them: a stick takes its time"
        )
    wish = Wish(
        name=name,
        args=asked.json_object(args, "--args"),
        id=id_ or fresh_id(),
        issuer=issuer or asked.user(),
        expires_s=asked.expires_s(expires),
    )
    targets = asked.Targets(device, tag, list_, everybody)
    orders = _made(wish, targets, database, sign)
    if files is not None:
        _write(orders, files, as_json)
        return
    if out is not None:
        _carry(orders, out, fleet_key, database, as_json, publish=publish)
        return
    timeout_s = duration_s(timeout)
    if direct:
        way = Broker(
            url=broker,
            prefix=prefix,
            username=username,
            password_file=password_file,
            ca_file=ca_file,
            cert_file=cert_file,
            key_file=key_file,
        )
        kept = _direct(way, orders, timeout_s)
    else:
        kept = _ordered(orders, database, timeout_s if wait else None)
    _told(wish.id, kept, as_json, wait=wait or direct)


def commands(
    device: Devices = None,
    ids: Ids = None,
    state: States = None,
    limit: Limit = 100,
    database: Database = SQLITE,
    as_json: Json = False,
) -> None:
    """What was ordered, and what became of it."""
    from fleet.control import book
    from fleet.control.cli import asked, view

    def question(one: "Transaction") -> "Awaitable[list[Kept]]":
        return book.found(one, devices=device or (), ids=ids or (), states=state or (), most=limit)

    found = asked.asked(database, question, reads_only=True)
    if as_json:
        asked.show({"commands": found})
    else:
        view.commands(found)


def _made(wish: "Wish", targets: "Targets", database: str, sign: Path | None) -> "list[Order]":
    """The orders for all devices that are meant."""
    import time

    from fleet.control.cli import asked
    from fleet.control.orders import made

    if targets.are_named:
        devices = asked.checked(targets.named())
    else:
        devices = asked.asked(database, targets.found, reads_only=True)
    return made(wish, devices, time.time(), asked.signer(sign))


def _write(orders: "list[Order]", folder: Path, as_json: bool) -> None:
    """A file for each command, as it would be published."""
    from fleet.control.cli import asked

    try:
        folder.mkdir(parents=True, exist_ok=True)
        written = []
        for one in orders:
            path = folder / f"{one.device}.{one.id.replace(':', '_')}.json"
            path.write_text(one.payload, encoding="utf-8")
            written.append(str(path))
    except OSError as error:
        raise ConfigError(f"--files {folder}: {error}", "name a folder to write into") from error
    if as_json:
        asked.show({"id": orders[0].id, "files": written})
    else:
        print("\n".join(written))


def _carry(
    orders: "list[Order]", folder: Path, key_file: Path, url: str, as_json: bool, *, publish: bool
) -> None:
    """Into the database, and a bundle for each device beside it."""
    from agent.protocol.signing import Key
    from fleet.control import book
    from fleet.control.carrying import packed, ready, written
    from fleet.control.cli import asked

    ready(folder)
    key, now_us = Key.kept(key_file), asked.now_us()
    devices, id_ = [one.device for one in orders], orders[0].id

    async def work(transaction: "Transaction") -> "tuple[dict[str, bytes], list[Kept]]":
        await book.add(transaction, orders, now_us, carried=not publish)
        made = await packed(transaction, devices, key, now_us, orders if publish else ())
        return made, await book.found(transaction, devices=devices, ids=[id_], most=len(orders))

    bundles, kept = asked.asked(url, work)
    paths = [str(one) for one in written(bundles, folder)]
    if as_json:
        asked.show({"id": id_, "commands": kept, "bundles": paths})
    else:
        print("\n".join([*paths, f"{id_}: take them to the devices (`holdfast bundle import`)"]))


def _ordered(orders: "list[Order]", url: str, wait_s: float | None) -> "list[Kept]":
    """Into the database; what is known of them at the end of the wait."""
    import asyncio

    from fleet.control import base, book
    from fleet.control.cli.asked import now_us
    from fleet.control.waiting import ended

    devices, ids = [one.device for one in orders], [orders[0].id]

    async def work() -> "list[Kept]":
        async with base.open(url) as database:
            async with database.begin() as transaction:
                await book.add(transaction, orders, now_us())
            return await ended(database, devices, ids, wait_s or 0.0)

    return asyncio.run(work())


def _direct(way: "Broker", orders: "list[Order]", wait_s: float) -> "list[Kept]":
    import asyncio

    from fleet.control.direct import given
    from fleet.mqtt.daemon import check

    check(way)
    return asyncio.run(given(way, orders, wait_s))


def _told(id_: str, kept: "list[Kept]", as_json: bool, *, wait: bool) -> None:
    """What is known of them, and the exit code."""
    from agent.words import counted
    from fleet.control.cli import asked, view

    if as_json:
        asked.show({"id": id_, "commands": kept})
    elif wait:
        view.commands(kept)
    else:
        print(f"{id_}: ordered of {counted(len(kept), 'device')}")
    if not wait:
        return
    if any(one.ended_us is None for one in kept):
        raise typer.Exit(NO_WORD)
    if any(one.state != "succeeded" for one in kept):
        raise typer.Exit(NOT_ALL)

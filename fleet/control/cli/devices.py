"""`holdfast-fleet devices`, `status`, `tag`, `twin`, `watch`.

Exit code of `twin set`: 10 not of all devices.
"""

import asyncio
import time
from typing import TYPE_CHECKING, Annotated, Any

import typer

from agent.errors import NotThere, StoreError
from fleet.control.cli import NOT_ALL
from fleet.options import SQLITE, Database, Devices, Everybody, Json, ListFile, Sign, Tags

if TYPE_CHECKING:
    from fleet.control.twins import Desiring
    from fleet.store.database import Transaction

devices_app = typer.Typer(
    help="Every device; and which are out of the fleet.", invoke_without_command=True
)
tag_app = typer.Typer(help="Names for groups of devices.", no_args_is_help=True)
twin_app = typer.Typer(
    help="What the fleet wants of a device, and what it says it is.", no_args_is_help=True
)
TagName = Annotated[str, typer.Argument(help="The tag.")]
Some = Annotated[list[str] | None, typer.Argument(help="Devices.")]
Retired = Annotated[list[str], typer.Argument(metavar="DEVICE...", help="Devices.")]
One = Annotated[str, typer.Argument(help="The device's id.")]
LAST = 10  # orders that `status` shows
WATCH_S = 0.5
BEHIND_US = 2_000_000  # what was committed later than it was written


@devices_app.callback()
def devices(
    context: typer.Context,
    tag: Tags = None,
    database: Database = SQLITE,
    as_json: Json = False,
) -> None:
    """Every device: whether it is there, how it is, what of it is stored, its tags."""
    from fleet import view
    from fleet.control.cli import asked

    if context.invoked_subcommand:
        _none_before(context)
        return
    found = asyncio.run(_both(database))
    if tag:
        found = [one for one in found if set(tag) <= set(one["tags"])]
    asked.show({"devices": found}) if as_json else view.devices(found)


def _none_before(context: typer.Context) -> None:
    """Options before a subcommand would be those of the list, and dropped: they are refused."""
    typed = [
        one.opts[0]
        for one in context.command.params
        if (source := context.get_parameter_source(one.name or "")) and source.name == "COMMANDLINE"
    ]
    if typed:
        name = context.invoked_subcommand
        context.fail(f"{', '.join(typed)} before `{name}`: say it behind, `devices {name} ...`")


@devices_app.command()
def retire(named: Retired, database: Database = SQLITE, as_json: Json = False) -> None:
    """Take devices out of the fleet: scrapped, lost, sold. What is stored of them stays.

    No selection has them any more, their open orders are withdrawn, and no rollout waits for them.
    """
    from fleet.control import retired
    from fleet.control.cli import asked

    _check_known(named, database)
    asked.asked(database, lambda one: retired.retire(one, named, asked.now_us()))
    _said(named, "retired", as_json)


@devices_app.command()
def reinstate(named: Retired, database: Database = SQLITE, as_json: Json = False) -> None:
    """Have retired devices back. What was withdrawn stays so: order it anew."""
    from fleet.control import retired
    from fleet.control.cli import asked

    _check_known(named, database)
    asked.asked(database, lambda one: retired.reinstate(one, named))
    _said(named, "reinstated", as_json)


def _check_known(named: list[str], url: str) -> None:
    """Raises NotThere: a name is a slip of the hand."""
    missing = set(named) - {one["device"] for one in asyncio.run(_both(url))}
    if missing:
        raise NotThere(
            f"{', '.join(sorted(missing))}: nothing is known of a device of that name",
            "`holdfast-fleet devices` lists those that are known",
        )


def _said(named: list[str], what: str, as_json: bool) -> None:
    from fleet.control.cli import asked

    if as_json:
        asked.show({what: named})
    else:
        print(f"{what}: {', '.join(named)}")


def status(device: One, database: Database = SQLITE, as_json: Json = False) -> None:
    """One device: whether it is there, what was ordered of it last, its twin."""
    from fleet.control import book, twins
    from fleet.control.cli import asked, view
    from fleet.store.database import Absent

    found = [one for one in asyncio.run(_both(database)) if one["device"] == device]

    async def more(transaction: "Transaction") -> dict[str, Any]:
        orders = await book.found(transaction, devices=[device], most=LAST)
        return {"commands": orders, "twin": await twins.read(transaction, device)}

    try:
        ordered = asked.asked(database, more, reads_only=True)
    except Absent:  # there is no controller
        ordered = {"commands": [], "twin": None}
    if not found:
        raise NotThere(
            f"{device}: nothing ever came from a device of that name, and it has no tag",
            "`holdfast-fleet devices` lists those that are known",
        )
    document = {**found[0], **ordered}
    asked.show(document) if as_json else view.device(document)


@tag_app.command("add")
def tag_add(
    tag: TagName,
    devices: Some = None,
    list_: ListFile = None,
    database: Database = SQLITE,
    as_json: Json = False,
) -> None:
    """Put a tag on devices, also on such as have not come yet."""
    from fleet.control import known
    from fleet.control.cli import asked

    named = asked.checked(asked.Targets(devices, None, list_).named())
    asked.asked(database, lambda one: known.tag(one, tag, named))
    if as_json:
        asked.show({"tag": tag, "devices": named})


@tag_app.command("rm")
def tag_rm(
    tag: TagName,
    devices: Some = None,
    list_: ListFile = None,
    database: Database = SQLITE,
    as_json: Json = False,
) -> None:
    """Take a tag off devices."""
    from fleet.control import known
    from fleet.control.cli import asked

    named = asked.checked(asked.Targets(devices, None, list_).named())
    asked.asked(database, lambda one: known.untag(one, tag, named))
    if as_json:
        asked.show({"tag": tag, "devices": named})


@tag_app.command("ls")
def tag_ls(database: Database = SQLITE, as_json: Json = False) -> None:
    """All tags, with their devices."""
    from fleet.control import known
    from fleet.control.cli import asked, view

    tags: dict[str, list[str]] = {}
    for one in asked.asked(database, known.devices, reads_only=True):
        for word in one.tags:
            tags.setdefault(word, []).append(one.device)
    asked.show({"tags": tags}) if as_json else view.tags(tags)


@twin_app.command("get")
def twin_get(device: One, database: Database = SQLITE, as_json: Json = False) -> None:
    """Both documents of a device."""
    from fleet.control import twins
    from fleet.control.cli import asked, view

    found = asked.asked(database, lambda one: twins.read(one, device), reads_only=True)
    asked.show(found) if as_json else view.twin(found)


@twin_app.command("set")
def twin_set(
    state: Annotated[str, typer.Argument(help="By aspect: a JSON object, or @FILE.")],
    device: Devices = None,
    tag: Tags = None,
    list_: ListFile = None,
    everybody: Everybody = False,
    merge: Annotated[
        bool, typer.Option("--merge", help="Into what is wanted already (RFC 7396).")
    ] = False,
    enforce: Annotated[
        list[str] | None, typer.Option(help="Undo changes made on the device in this aspect.")
    ] = None,
    if_version: Annotated[
        int | None, typer.Option(help="Only if the desired document has this version.")
    ] = None,
    sign: Sign = None,
    database: Database = SQLITE,
    as_json: Json = False,
) -> None:
    """Want this of devices; the controller publishes it, retained."""
    from fleet.control import twins
    from fleet.control.cli import asked, view

    wanted = asked.json_object(state, "the state")
    wish = twins.Wish(state=wanted, merge=merge, enforce=enforce, if_version=if_version)
    targets, key = asked.Targets(device, tag, list_, everybody), asked.signer(sign)

    async def desire(transaction: "Transaction") -> "Desiring":
        names = await targets.found(transaction)
        return await twins.desire(transaction, names, wish, asked.now_us(), key)

    found = asked.asked(database, desire)
    asked.show(found) if as_json else view.desiring(found)
    if found.left_out:
        raise typer.Exit(NOT_ALL)


def watch(
    device: Devices = None,
    rollout: Annotated[str, typer.Option(help="Of this rollout, until it stops.")] = "",
    seconds: Annotated[float, typer.Option(min=0, help="So long; 0: until Ctrl-C.")] = 0.0,
    database: Database = SQLITE,
    as_json: Json = False,
) -> None:
    """What happens to orders, as it happens: a line each, with --json a document each."""
    asyncio.run(_watched(database, device or [], rollout, seconds, as_json))


async def _watched(url: str, named: list[str], rollout: str, seconds: float, as_json: bool) -> None:
    from fleet.control import base, book, standing
    from fleet.control.cli import asked, view
    from fleet.control.waiting import OVER

    end, told = time.monotonic() + (seconds or float("inf")), dict[tuple[str, str], int]()
    since_us, ids = asked.now_us(), [rollout, standing.back_id(rollout)] if rollout else []
    async with base.open(url, reads_only=True) as there:
        while time.monotonic() < end:
            async with there.begin() as one:
                state = (await standing.read(one, rollout)).state if rollout else ""
                some: Any = {"devices": named, "ids": ids, "since_us": since_us, "most": 100_000}
                found = await book.found(one, **some)
            for each in reversed(found):
                if each.state != "planned" and told.get((each.device, each.id)) != each.changed_us:
                    told[each.device, each.id] = each.changed_us
                    asked.show(each) if as_json else view.event(each)
            if found:
                since_us = max(since_us, found[0].changed_us - BEHIND_US)
                told = {name: at for name, at in told.items() if at >= since_us}
            if state in OVER:
                return
            await asyncio.sleep(WATCH_S)


async def _both(url: str) -> list[dict[str, Any]]:
    """What the ingest knows of each device, and what the controller does, in one document.

    Raises StoreError when there is neither.
    """
    import msgspec

    from fleet.control import base, known
    from fleet.store import database
    from fleet.store.cloud import Cloud
    from fleet.store.database import Absent
    from fleet.store.gaps import Device

    stored, ordered, absent = list[Device](), list[Any](), list[StoreError]()
    try:
        async with Cloud(database.open(url, reads_only=True)) as cloud:
            stored = await cloud.devices()
    except Absent as error:
        absent.append(error)
    try:
        async with base.open(url, reads_only=True) as there, there.begin() as transaction:
            ordered = await known.devices(transaction)
    except Absent as error:
        absent.append(error)
    if len(absent) == 2:
        raise absent[0]
    bare: dict[str, Any] = {"tags": [], "open": 0, "retired": False}
    found = {one.device: {**msgspec.structs.asdict(one), **bare} for one in stored}
    nothing: dict[str, Any] = dict.fromkeys(Device.__struct_fields__)
    zeros = dict.fromkeys(("streams", "records", "size_bytes", "gaps", "unfinished"), 0)
    for one in ordered:
        row = found.setdefault(one.device, {**nothing, **zeros, "device": one.device})
        row |= {"tags": one.tags, "open": one.open, "retired": one.retired}
        if one.online is not None and one.since_us >= (row["presence_us"] or 0):
            row |= {"online": one.online, "presence_us": one.since_us, "version": one.version}
    return [found[name] for name in sorted(found)]

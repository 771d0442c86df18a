"""`holdfast-fleet rollout`: a command to many devices, in steps.

Exit codes of `show`: 10 devices, or their ways back, failed; with --wait also 11 it goes on still,
12 it is paused, 13 it was aborted.
"""

import asyncio
import time
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fleet.control.cli import ABORTED, NO_WORD, NOT_ALL, PAUSED
from fleet.options import (
    SQLITE,
    Args,
    Database,
    Devices,
    Everybody,
    Issuer,
    Json,
    ListFile,
    Sign,
    Tags,
)

if TYPE_CHECKING:
    from fleet.control.orders import Order
    from fleet.control.reports import Report
    from fleet.store.database import Transaction

app = typer.Typer(help="A command to many devices, in steps.", no_args_is_help=True)
Name = Annotated[str, typer.Argument(help="The command, as model.install.")]
Id = Annotated[str, typer.Argument(help="The rollout's id.")]
NewId = Annotated[str, typer.Option("--id", help="The rollout's id; none: a new one.")]
Steps = Annotated[str, typer.Option(help="Percentages of the devices, ascending.")]
Counts = Annotated[str, typer.Option(help="Numbers of devices in place of --steps, as 1,20,200.")]
Soak = Annotated[str, typer.Option(help="How long each step is looked at before the next.")]
InFlight = Annotated[int, typer.Option(help="So many devices at a time.")]
Timeout = Annotated[
    str, typer.Option(help="A device that is there and says no last word for so long has failed.")
]
PauseAt = Annotated[
    float | None,
    typer.Option(help="Pause when more than this share of those that ended failed: 0 to 1."),
]
Samples = Annotated[int, typer.Option(help="But not before so many have ended.")]
Quorum = Annotated[
    float, typer.Option(help="The next step begins once this share of a step has ended.")
]
Seed = Annotated[str, typer.Option(help="The order of the devices; none: the rollout's id.")]
Back = Annotated[
    str,
    typer.Option(
        "--rollback",
        help="The command that takes it back, as model.rollback: of what this rollout brought.",
    ),
]
BackArgs = Annotated[str, typer.Option("--rollback-args", help="Its arguments, a JSON object.")]
BackOn = Annotated[
    str,
    typer.Option(
        "--rollback-on", help="failed: to devices that failed; abort: to all that have it; both."
    ),
]
Expires = Annotated[str, typer.Option(help="After that no device begins it: 90s, 2h, 30d, never.")]
Wait = Annotated[bool, typer.Option("--wait", help="Until it does not go on by itself any more.")]
WaitFor = Annotated[str, typer.Option("--timeout", help="Wait so long, as 90s or 2h.")]
Why = Annotated[str, typer.Option(help="The reason, for those who come later.")]


@app.command()
def start(
    name: Name,
    device: Devices = None,
    tag: Tags = None,
    list_: ListFile = None,
    everybody: Everybody = False,
    args: Args = "{}",
    id_: NewId = "",
    steps: Steps = "1,10,50,100",
    counts: Counts = "",
    soak: Soak = "0s",
    in_flight: InFlight = 100,
    timeout: Timeout = "10min",
    pause_at: PauseAt = 0.1,
    samples: Samples = 5,
    quorum: Quorum = 0.5,
    seed: Seed = "",
    rollback: Back = "",
    rollback_args: BackArgs = "{}",
    rollback_on: BackOn = "failed",
    expires: Expires = "30d",
    sign: Sign = None,
    issuer: Issuer = "",
    database: Database = SQLITE,
    as_json: Json = False,
) -> None:
    """Begin one. The commands are made, and signed, here and now."""
    from fleet.control import plan, rollouts, standing
    from fleet.control.cli import asked, view
    from fleet.control.orders import Wish, duration_s, fresh_id, made
    from fleet.control.reports import report

    id_ = id_ or fresh_id().replace("c-", "r-", 1)
    targets, key = asked.Targets(device, tag, list_, everybody), asked.signer(sign)
    told: dict[str, Any] = {"issuer": issuer or asked.user(), "expires_s": asked.expires_s(expires)}
    wish = Wish(name=name, args=asked.json_object(args, "--args"), id=id_, **told)
    given = asked.json_object(rollback_args, "--rollback-args")
    back_args = plan.way_back(rollback, given, id_)
    back = Wish(name=rollback, args=back_args, id=standing.back_id(id_), **told)

    async def begin(transaction: "Transaction") -> "Report":
        members = plan.ordered(await targets.found(transaction), seed or id_)
        bounds = plan.counts if counts else plan.shares
        made_plan = plan.Plan(
            name=name,
            args=wish.args,
            bounds=bounds(counts or steps, len(members)),
            soak_s=duration_s(soak),
            in_flight_max=in_flight,
            timeout_s=duration_s(timeout),
            failures_max=0.1 if pause_at is None else pause_at,
            samples_min=samples,
            quorum=quorum,
            seed=seed or id_,
            back=rollback,
            back_args=back_args,
            back_on=rollback_on if rollback else "",  # type: ignore[arg-type]  # checked below
        )
        orders = made(wish, members, time.time(), key)
        backs: list[Order] = made(back, members, time.time(), key) if rollback else []
        checked = rollouts.checked(made_plan)
        await rollouts.start(transaction, id_, checked, orders, backs, asked.now_us())
        return await report(transaction, id_)

    found = asked.asked(database, begin)
    asked.show(found) if as_json else view.rollout(found)


@app.command("ls")
def list_all(database: Database = SQLITE, as_json: Json = False) -> None:
    """All rollouts, the newest first."""
    from fleet.control import standing
    from fleet.control.cli import asked, view
    from fleet.control.reports import report

    async def read(transaction: "Transaction") -> "list[Report]":
        return [await report(transaction, id_) for id_ in await standing.ids(transaction)]

    found = asked.asked(database, read, reads_only=True)
    asked.show({"rollouts": found}) if as_json else view.rollouts(found)


@app.command()
def show(
    id_: Id,
    wait: Wait = False,
    timeout: WaitFor = "1h",
    database: Database = SQLITE,
    as_json: Json = False,
) -> None:
    """Where one stands, and which devices or ways back failed, with their reasons."""
    from fleet.control import base
    from fleet.control.cli import asked, view
    from fleet.control.orders import duration_s
    from fleet.control.waiting import over

    wait_s = duration_s(timeout) if wait else 0.0

    async def read() -> "Report":
        async with base.open(database, reads_only=True) as there:
            return await over(there, id_, wait_s)

    found = asyncio.run(read())
    asked.show(found) if as_json else view.rollout(found)
    codes = {"running": NO_WORD, "paused": PAUSED, "aborted": ABORTED}
    if wait and found.state in codes:
        raise typer.Exit(codes[found.state])
    if found.failed or (found.back and found.back.failed):
        raise typer.Exit(NOT_ALL)


@app.command()
def pause(
    id_: Id, why: Why = "ordered", database: Database = SQLITE, as_json: Json = False
) -> None:
    """Give the command to nobody else for now; those that have it go on."""
    from fleet.control import rollouts
    from fleet.control.cli.asked import now_us

    _change(database, id_, lambda one: rollouts.pause(one, id_, why, now_us()), as_json)


@app.command()
def resume(
    id_: Id, pause_at: PauseAt = None, database: Database = SQLITE, as_json: Json = False
) -> None:
    """Go on. What failed so far does not count any more; --pause-at sets another share."""
    from fleet.control import rollouts
    from fleet.control.cli.asked import now_us

    _change(database, id_, lambda one: rollouts.resume(one, id_, now_us(), pause_at), as_json)


@app.command()
def abort(
    id_: Id, why: Why = "ordered", database: Database = SQLITE, as_json: Json = False
) -> None:
    """End it. What no device has said a word on is withdrawn; the way back is sent if planned."""
    from fleet.control import rollouts
    from fleet.control.cli.asked import now_us

    _change(database, id_, lambda one: rollouts.abort(one, id_, why, now_us()), as_json)


def _change(url: str, id_: str, change: Any, as_json: bool) -> None:
    """Do it, and show what came of it."""
    from fleet.control.cli import asked, view
    from fleet.control.reports import report

    async def changed(transaction: "Transaction") -> "Report":
        await change(transaction)
        return await report(transaction, id_)

    found = asked.asked(url, changed)
    asked.show(found) if as_json else view.rollout(found)

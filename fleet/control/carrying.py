"""Orders by stick: a bundle of commands for each device, and the last words that come back.

A device's bundle holds all orders that are on their way to it by stick, so it may replace one that
was made before, and a stick that was lost is made again.

Limits  : COMMANDS_MAX orders and ACK_BUNDLE_BYTES_MAX for a device, as its end takes them.
Recovery: orders are committed before a bundle is written; `holdfast-fleet bundle commands` writes
          it again. A device has one effect of an id, however many sticks bring it.
"""

from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path

from agent.errors import ConfigError, NotNow
from agent.protocol import command_bundle, commands
from agent.protocol.bundle import ACK_BUNDLE_BYTES_MAX
from agent.protocol.command_bundle import COMMANDS_MAX
from agent.protocol.commands import Result
from agent.protocol.signing import Key
from agent.words import counted
from fleet.control import base, book, driving
from fleet.control.orders import Order
from fleet.stick import stick
from fleet.store.database import Absent, Transaction

Hear = Callable[[Sequence[Result]], Awaitable[None]]


async def packed(
    transaction: Transaction,
    devices: Sequence[str],
    key: Key,
    now_us: int,
    beside: Iterable[Order] = (),
) -> dict[str, bytes]:
    """The bundle of each of these devices that is owed orders by stick; without `devices`, of all.

    `beside` are orders that go both ways. Raises NotNow for a device that is owed too much.
    """
    owed = await book.carried(transaction, devices, now_us)
    for one in beside:
        owed.setdefault(one.device, []).append(one.payload)
    created = datetime.fromtimestamp(now_us / 1e6, UTC).isoformat(timespec="seconds")
    return {device: _bundle(device, some, key, created) for device, some in owed.items()}


def _bundle(device: str, payloads: Sequence[str], key: Key, created: str) -> bytes:
    if len(payloads) <= COMMANDS_MAX:
        some = [commands.decode(one.encode()).command for one in payloads]
        content = command_bundle.made(device, some, key, created)
        if len(content) <= ACK_BUNDLE_BYTES_MAX:
            return content
    raise NotNow(
        f"{device} is owed {counted(len(payloads), 'order')} by stick; a bundle has room for "
        f"{COMMANDS_MAX:,} of {ACK_BUNDLE_BYTES_MAX >> 20} MiB in all",
        "carry what is there, and import what comes back (`holdfast-fleet bundle import`)",
    )


def ready(folder: Path) -> None:
    """There is such a folder, before anything is ordered. Raises ConfigError."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"--out {folder}: {error}", "name a folder to write into") from error


def written(bundles: Mapping[str, bytes], folder: Path) -> list[Path]:
    """`DEVICE.cmd.hfb` for each, whole on the disk. Raises ConfigError."""
    paths = []
    for device, content in bundles.items():
        paths.append(folder / f"{device}.cmd.hfb")
        try:
            stick.write(paths[-1], content)
        except OSError as error:
            raise ConfigError(
                f"{paths[-1]}: {error.strerror or error}; the orders are noted",
                "make room, and write all of them: holdfast-fleet bundle commands --out FOLDER",
            ) from error
    return paths


@asynccontextmanager
async def hearing(url: str, now_us: Callable[[], int]) -> AsyncIterator[Hear]:
    """Takes last words into the controller's tables, where there are such. Raises StoreError."""
    try:
        async with base.open(url, reads_only=True):
            pass
    except Absent:  # nobody has ordered anything here
        yield _nobody
        return
    async with base.open(url) as database:

        async def hear(said: Sequence[Result]) -> None:
            async with database.begin() as transaction:
                _, touched = await book.heard(transaction, said, now_us(), now_us())
                for id_ in sorted(touched):
                    await driving.drive(transaction, id_, now_us())

        yield hear


async def _nobody(_: Sequence[Result]) -> None:
    return

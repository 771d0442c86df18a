"""What the commands share: a transaction on the controller's tables, which devices are meant, what
is to be done."""

import asyncio
import getpass
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import msgspec
from msgspec import Struct

from agent.errors import ConfigError, NotThere, RequestError
from agent.protocol.signing import Key
from fleet.control import base, known
from fleet.control.orders import duration_s
from fleet.store.database import Transaction

T = TypeVar("T")
NEVER = "never"


class Targets(Struct, frozen=True):
    """The devices that a command line names."""

    devices: Sequence[str] | None
    tags: Sequence[str] | None
    file: Path | None
    everybody: bool = False

    @property
    def are_named(self) -> bool:
        """Whether no database is needed to know them."""
        return not self.tags and not self.everybody

    def named(self) -> list[str]:
        """Those that are named one by one. Raises RequestError."""
        return [*(self.devices or ()), *(_lines(self.file) if self.file else ())]

    async def found(self, transaction: Transaction) -> list[str]:
        """All of them, each once, by name. Raises NotThere, RequestError."""
        found = self.named()
        if self.tags:
            found += await known.tagged(transaction, self.tags)
        if self.everybody:
            found += await known.names(transaction)
        return checked(found)


def checked(found: Sequence[str]) -> list[str]:
    """Each once, by name. Raises NotThere where there is none."""
    if not found:
        raise NotThere("no device is meant", "say --device, --tag, --list or --all")
    return sorted(set(found))


def _lines(file: Path) -> list[str]:
    try:
        text = sys.stdin.read() if str(file) == "-" else file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise RequestError(f"--list {file}: {error}", "name a file of device ids") from error
    lines = (line.partition("#")[0].strip() for line in text.splitlines())
    return [line for line in lines if line]


def asked(
    url: str, question: Callable[[Transaction], Awaitable[T]], *, reads_only: bool = False
) -> T:
    """What one transaction on the controller's tables answers."""

    async def answer() -> T:
        async with base.open(url, reads_only=reads_only) as database, database.begin() as one:
            return await question(one)

    return asyncio.run(answer())


def now_us() -> int:
    """Microseconds since 1970."""
    return time.time_ns() // 1000


def json_object(text: str, option: str) -> dict[str, Any]:
    """A JSON object as it was typed, or in the file behind an @. Raises RequestError."""
    try:
        if text.startswith("@"):
            text = Path(text[1:]).read_text(encoding="utf-8")
        return msgspec.json.decode(text, type=dict[str, Any])
    except (msgspec.DecodeError, OSError, UnicodeError, RecursionError) as error:
        raise RequestError(
            f"{option}: {error}", """write a JSON object, as '{"for_s": 60}', or @FILE"""
        ) from error


def expires_s(text: str) -> float | None:
    """A duration, or `never`. Raises RequestError."""
    return None if text == NEVER else duration_s(text)


def signer(file: Path | None) -> Key | None:
    """The key in a file. Raises ConfigError, also where there is none."""
    if file is not None and not file.exists():
        raise ConfigError(
            f"--sign {file}: there is no such key",
            f"`holdfast-fleet bundle key --key-file {file}` makes one",
        )
    return Key.kept(file) if file is not None else None


def user() -> str:
    """Who sits here, as far as the system knows."""
    try:
        return getpass.getuser()
    except (OSError, KeyError):
        return ""


def show(document: Any) -> None:
    """As JSON, for programs."""
    print(msgspec.json.encode(document).decode(), flush=True)

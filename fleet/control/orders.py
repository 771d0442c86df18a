"""Orders before they are anybody's: a wish, made into one command for each device.

A signed command names its device and when it expires, so each device has a text of its own. Who
signs is the person at the command line; the controller that publishes never holds a key.

Limits: COMMAND_BYTES_MAX of a command; an id of 56 characters, so that a rollout's way back has
one, too.
"""

import re
import secrets
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
from msgspec import Struct

from agent.errors import ProtocolError, RequestError
from agent.protocol import commands
from agent.protocol.commands import Command
from agent.protocol.signing import Key

ID_CHARS_MAX = 56
_UNITS = {"s": 1, "min": 60, "h": 3600, "d": 86_400}
_DURATION = re.compile(r"(\d{1,9})(s|min|h|d)")


class Wish(Struct, frozen=True, kw_only=True):
    """What is to be done. It expires `expires_s` after it was made; None: never."""

    name: str
    args: dict[str, Any] = {}
    id: str = ""
    issuer: str = ""
    expires_s: float | None = None


class Order(Struct, frozen=True):
    """A command for one device, as it is published."""

    device: str
    id: str
    name: str
    issuer: str
    payload: str
    expires_us: int | None


def fresh_id() -> str:
    """An id that nobody has."""
    return f"c-{secrets.token_hex(6)}"


def duration_s(text: str) -> float:
    """`90s`, `10min`, `2h`, `7d` as seconds. Raises RequestError."""
    found = _DURATION.fullmatch(text.strip())
    if not found:
        raise RequestError(
            f"{text!r} is no duration; expected a number and its unit, as 90s, 10min, 2h or 7d",
            "write it so",
        )
    return float(found[1]) * _UNITS[found[2]]


def made(wish: Wish, devices: Iterable[str], wall_s: float, key: Key | None = None) -> list[Order]:
    """One order for each device, signed with `key`. Raises RequestError for what is no command."""
    now = datetime.fromtimestamp(wall_s, UTC).replace(microsecond=0)
    if len(wish.id) > ID_CHARS_MAX:
        raise RequestError(
            f"the id {wish.id!r} is longer than {ID_CHARS_MAX} characters", "choose a shorter one"
        )
    if key is not None and wish.expires_s is None:
        raise RequestError("a signed command must expire", "say --expires, as 7d")
    try:
        expires = now + timedelta(seconds=wish.expires_s) if wish.expires_s is not None else None
    except OverflowError as error:
        raise RequestError(f"it expires in {wish.expires_s:g} s: too far", "say less") from error
    return [_order(wish, device, now, expires, key) for device in devices]


def _order(
    wish: Wish, device: str, now: datetime, expires: datetime | None, key: Key | None
) -> Order:
    command = Command(
        id=wish.id or fresh_id(),
        name=wish.name,
        args=wish.args,
        device=device,
        issuer=wish.issuer,
        issued=now,
        expires=expires,
    )
    payload = commands.sign(command, key) if key else msgspec.json.encode(command)
    try:
        commands.decode(payload)
    except ProtocolError as error:
        raise RequestError(f"no command for {device!r}: {error}", "correct it") from error
    expires_us = int(expires.timestamp() * 1e6) if expires else None
    return Order(device, command.id, command.name, command.issuer, payload.decode(), expires_us)

"""Twins: what the fleet wants of a device, and what the device says it is.

Limits  : TWIN_BYTES_MAX of a document. A device's word on the version that it has is believed up to
          BELIEVED_MAX: half of what a version may be.
Format  : agent/protocol/twin.py. `version` is given here, and grows by one with each change.
Recovery: a document is due until the broker has it.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from agent.errors import NotNow, ProtocolError, RequestError
from agent.protocol import twin
from agent.protocol.signing import Key
from agent.protocol.twin import Desired, Reported
from fleet.control import retired
from fleet.store.database import Row, Transaction

BELIEVED_MAX = 2**52
_READ = "SELECT device, version, desired, due, desired_us, reported, reported_us FROM twins"
_DESIRE = """
INSERT INTO twins (device, version, desired, due, desired_us) VALUES ($1, $2, $3, TRUE, $4)
ON CONFLICT (device) DO UPDATE SET version = excluded.version, desired = excluded.desired,
due = TRUE, desired_us = excluded.desired_us
"""
_DUE = "SELECT device, version, desired FROM twins WHERE due ORDER BY desired_us LIMIT $1"
_PUBLISHED = "UPDATE twins SET due = FALSE WHERE device = $1 AND version = $2"
_REPORTED = """
INSERT INTO twins (device, version, due, reported, reported_us) VALUES ($1, 0, FALSE, $2, $3)
ON CONFLICT (device) DO UPDATE SET reported = excluded.reported, reported_us = excluded.reported_us
"""


class Wish(Struct, frozen=True, kw_only=True):
    """`state` by aspect, in place of what was wanted or, with `merge`, into it (RFC 7396).

    `enforce`: in these aspects a change made on the device itself is undone; None: as before.
    `if_version`: only if that is the version now.
    """

    state: dict[str, Any]
    merge: bool = False
    enforce: list[str] | None = None
    if_version: int | None = None


class Twin(Struct, frozen=True):
    """Of one device. `due`: the broker does not have the desired document yet; `by` signed it."""

    device: str
    version: int
    desired: Desired | None
    by: str
    due: bool
    desired_us: int | None
    reported: Reported | None
    reported_us: int | None


class Desiring(Struct, frozen=True):
    """What is wanted now, and of which devices nothing is: why."""

    twins: list[Twin]
    left_out: dict[str, str]


async def read(transaction: Transaction, device: str) -> Twin:
    """What is known; an empty one for a device of which nothing is."""
    return (await _read(transaction, [device], ""))[device]


async def desire(
    transaction: Transaction,
    devices: Sequence[str],
    wish: Wish,
    now_us: int,
    key: Key | None = None,
) -> Desiring:
    """Want this of devices, signed with `key`.

    Raises NotNow when a version is another, or a device is retired; RequestError for what is no
    document.
    """
    await retired.check(transaction, devices)
    known, wanted = await _read(transaction, sorted(set(devices)), " FOR UPDATE"), list[Twin]()
    rows, left_out = list[Row](), dict[str, str]()
    for device, was in known.items():
        made = _made(was, wish)
        if why := _pinned(was, signed=key is not None):
            left_out[device] = why
            continue
        payload = twin.sign(made, key) if key else msgspec.json.encode(made)
        try:
            twin.decode(payload)
        except ProtocolError as error:
            raise RequestError(f"no document for {device!r}: {error}", "correct it") from error
        rows.append((device, made.version, payload.decode(), now_us))
        told = {"version": made.version, "desired": made, "by": key.public if key else ""}
        wanted.append(replace(was, **told, due=True, desired_us=now_us))
    await transaction.many(_DESIRE, rows)
    return Desiring(wanted, left_out)


async def _read(transaction: Transaction, devices: Sequence[str], lock: str) -> dict[str, Twin]:
    """By device, each of these."""
    sql = f"{_READ} WHERE device = ANY($1) ORDER BY device{lock}"
    found = {device: Twin(device, 0, None, "", False, None, None, None) for device in devices}
    for device, version, desired, due, desired_us, reported, reported_us in await transaction.fetch(
        sql, list(devices)
    ):
        wanted = twin.decode(desired.encode()) if desired else None
        said = msgspec.json.decode(reported, type=Reported) if reported else None
        document, by = (wanted.desired, wanted.by) if wanted else (None, "")
        told = (version, document, by, bool(due), desired_us, said, reported_us)
        found[device] = Twin(device, *told)
    return found


def _pinned(was: Twin, *, signed: bool) -> str:
    """Why no document that is given here would count on a device; empty: one would.

    A version may be anything that a device says, or that somebody wrote to an open broker. What is
    signed takes the place of what is not, whatever its version, and never the other way.
    """
    if was.by and not signed:
        return "what is wanted of it is signed, and it passes over what is not: say --sign, too"
    said = was.reported.desired_version if was.reported else 0
    if signed or said <= max(was.version, BELIEVED_MAX):
        return ""
    return (
        f"it says that it has version {said} of what is wanted, which nobody here gave it; what is "
        "signed (--sign) takes its place"
    )


def _made(was: Twin, wish: Wish) -> Desired:
    """Raises NotNow when the version is another."""
    if wish.if_version is not None and wish.if_version != was.version:
        raise NotNow(
            f"{was.device}: its desired document has version {was.version}, not {wish.if_version}",
            "look at it with `holdfast-fleet twin get`, and try again",
        )
    # A database that was put back from a copy knows less than the device does.
    said = was.reported.desired_version if was.reported else 0
    before = was.desired or Desired(version=0)
    return Desired(
        version=max(was.version, said if said <= BELIEVED_MAX else 0) + 1,
        state=merged(before.state, wish.state) if wish.merge else wish.state,
        device=was.device,
        enforce=before.enforce if wish.enforce is None else wish.enforce,
    )


def merged(target: Mapping[str, Any], patch: Mapping[str, Any]) -> dict[str, Any]:
    """RFC 7396, JSON Merge Patch: objects are merged, null removes, all else replaces."""
    found = dict(target)
    for key, value in patch.items():
        if value is None:
            found.pop(key, None)
        elif isinstance(value, Mapping):
            inner = found.get(key)
            found[key] = merged(inner if isinstance(inner, Mapping) else {}, value)
        else:
            found[key] = value
    return found


async def due(transaction: Transaction, most: int) -> Sequence[tuple[str, int, str]]:
    """Device, version and document of those that the broker does not have yet."""
    return [(row[0], row[1], row[2]) for row in await transaction.fetch(_DUE, most)]


async def published(transaction: Transaction, some: Sequence[tuple[str, int]]) -> None:
    """The broker has these versions."""
    await transaction.many(_PUBLISHED, sorted(some))


async def reported(transaction: Transaction, said: Mapping[str, str], now_us: int) -> None:
    """Devices say what they are; the JSON of each."""
    await transaction.many(_REPORTED, [(name, said[name], now_us) for name in sorted(said)])

"""The commands' table: what was ordered, what is due, what came back.

Limits  : what ended long ago is removed (`forget`); texts of a result for people have 500
          characters here, the whole result is kept beside them.
Format  : sql; a command's identity is (device, id).
Recovery: what was published and not noted is published again: the device has one effect of an id.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import msgspec
from msgspec import Struct

from agent.errors import NotNow
from agent.protocol.commands import Result
from agent.words import quoted
from fleet.control import retired
from fleet.control.orders import Order
from fleet.control.words import is_news
from fleet.store.database import Row, Transaction

MESSAGE_CHARS_MAX = 500
LAPSE_US = 60_000_000  # a last word may still be on its way
_ENTERED = (
    *("device", "id", "name", "issuer", "rollout", "payload", "state"),
    *("made_us", "expires_us", "due_us", "given_us", "changed_us"),
)
_TAKEN = """
SELECT c.device, c.id FROM ROWS($1) q JOIN commands c
ON c.device = q.value->>0 AND c.id = q.value->>1 ORDER BY c.device LIMIT 1
"""
_DUE = """
SELECT c.device, c.id, c.payload, p.online FROM commands c
LEFT JOIN presences p ON p.device = c.device WHERE c.due_us <= $1 ORDER BY c.due_us LIMIT $2
"""
_SENT = """
UPDATE commands SET sends = sends + 1, sent_us = coalesce(sent_us, $3),
    asked_us = coalesce(asked_us, $3), changed_us = $3,
    state = CASE WHEN state = 'waiting' THEN 'sent' ELSE state END,
    due_us = CASE WHEN due_us <= $4 THEN $5 ELSE due_us END WHERE device = $1 AND id = $2
"""
_PUT_OFF = """
UPDATE commands SET due_us = $3 WHERE device = $1 AND id = $2 AND due_us <= $4
"""
_STATES = """
SELECT c.device, c.id, c.state, c.reason, r.device IS NOT NULL, c.rollout
FROM ROWS($1) q JOIN commands c ON c.device = q.value->>0 AND c.id = q.value->>1
LEFT JOIN retired r ON r.device = c.device
"""
_HEARD = """
UPDATE commands SET state = $3, progress = $4, reason = $5, message = $6, result = $7, due_us = $8,
    ended_us = $9, changed_us = $10, asked_us = coalesce(asked_us, $10),
    sent_us = coalesce(sent_us, $10) WHERE device = $1 AND id = $2
"""
_LAPSE = """
UPDATE commands SET state = 'lapsed', due_us = NULL, ended_us = $1, changed_us = $1,
    reason = 'too_old', message = 'it expired before the device said a word'
WHERE ended_us IS NULL AND expires_us <= $2 AND state IN ('planned', 'waiting', 'carried', 'sent')
RETURNING rollout
"""
_BORN = """
UPDATE commands SET due_us = $2
WHERE device = ANY($1) AND ended_us IS NULL AND state NOT IN ('planned', 'carried')
"""
_GONE = """
UPDATE commands SET due_us = NULL, asked_us = NULL
WHERE device = ANY($1) AND state IN ('waiting', 'sent')
"""
_CARRIED = """
SELECT device, payload FROM commands
WHERE state = 'carried' AND (expires_us IS NULL OR expires_us > $1){which}
ORDER BY device, made_us, id
"""
_FORGET = """
DELETE FROM commands WHERE rollout = '' AND coalesce(ended_us, expires_us) < $1
"""
_COLUMNS = """
device, id, name, issuer, rollout, state, made_us, given_us, expires_us, sends, sent_us, ended_us,
changed_us, progress, reason, message, result
"""
Name = tuple[str, str]  # device, id


class Kept(Struct, frozen=True):
    """An order as the table has it. Times are microseconds since 1970, by this side's clock.

    `made_us` is when it was ordered, `given_us` since when it may be published: one of a rollout
    waits for its turn. `result` is the device's last word, whole.
    """

    device: str
    id: str
    name: str
    issuer: str
    rollout: str
    state: str
    made_us: int
    given_us: int | None
    expires_us: int | None
    sends: int
    sent_us: int | None
    ended_us: int | None
    changed_us: int
    progress: float | None
    reason: str
    message: str
    result: msgspec.Raw | None


class Due(NamedTuple):
    """To be published; `online` is False for a device that is known to be away."""

    device: str
    id: str
    payload: str
    online: bool | None


async def add(
    transaction: Transaction,
    orders: Sequence[Order],
    now_us: int,
    rollout: str = "",
    *,
    carried: bool = False,
) -> None:
    """Enter orders: to be published at once, those of a rollout when it says so, `carried` never.

    Raises NotNow when a device has a command of such an id already, or is retired.
    """
    await retired.check(transaction, [one.device for one in orders])
    taken = await transaction.fetch(_TAKEN, [[one.device, one.id] for one in orders])
    for device, id_ in taken:
        raise NotNow(f"{device} has a command {id_} already", "choose another --id")
    state, due_us = ("planned", None) if rollout else ("waiting", now_us)
    if carried:
        state, due_us = "carried", None
    rows = [
        (
            *(one.device, one.id, one.name, one.issuer, rollout, one.payload),
            *(state, now_us, one.expires_us, due_us, due_us, now_us),
        )
        for one in orders
    ]
    await transaction.copy("commands", _ENTERED, rows)


async def due(transaction: Transaction, now_us: int, most: int) -> list[Due]:
    """What should be published by now, the longest due first."""
    rows = await transaction.fetch(_DUE, now_us, most)
    return [
        Due(device, id_, payload, None if online is None else bool(online))
        for device, id_, payload, online in rows
    ]


async def sent(
    transaction: Transaction, some: Iterable[Due], picked_us: int, now_us: int, again_us: int
) -> None:
    """The broker has these; if nothing is heard, they are due again at `again_us`."""
    rows = [(one.device, one.id, now_us, picked_us, again_us) for one in some]
    await transaction.many(_SENT, sorted(rows))


async def put_off(
    transaction: Transaction, some: Iterable[Due], picked_us: int, until_us: int | None
) -> None:
    """Not now; None: when the device is back."""
    await transaction.many(
        _PUT_OFF, sorted((one.device, one.id, until_us, picked_us) for one in some)
    )


async def heard(
    transaction: Transaction, said: Sequence[Result], now_us: int, again_us: int
) -> tuple[int, set[str]]:
    """Devices' words, in their order; how many of them say more than was known, of which rollouts.

    A word on what this controller did not order changes nothing.
    """
    names = sorted({(one.device, one.id) for one in said})
    rows = await transaction.fetch(_STATES, [list(name) for name in names])
    states = {(device, id_): (state, reason) for device, id_, state, reason, *_ in rows}
    out = {row[0] for row in rows if row[4]}
    news: dict[Name, Result] = {}
    count = 0
    for one in said:
        name = (one.device, one.id)
        if name in states and is_news(*states[name], one, is_retired=one.device in out):
            states[name], news[name] = (one.state, one.reason), one
            count += 1
    await transaction.many(
        _HEARD, [_heard_row(one, now_us, again_us) for _, one in sorted(news.items())]
    )
    return count, {row[5] for row in rows if row[5] and (row[0], row[1]) in news}


def _heard_row(one: Result, now_us: int, again_us: int) -> Row:
    progress = None if one.progress is None else min(max(one.progress, 0.0), 1.0)
    due_us, ended_us = (None, now_us) if one.ended else (again_us, None)
    message = quoted(one.message, MESSAGE_CHARS_MAX)
    text = msgspec.json.encode(one).decode()
    row = (one.device, one.id, one.state, progress, one.reason, message, text)
    return (*row, due_us, ended_us, now_us)


async def lapse(transaction: Transaction, now_us: int) -> set[str]:
    """Those that expired without a word; of which rollouts they were."""
    rows = await transaction.fetch(_LAPSE, now_us, now_us - LAPSE_US)
    return {row[0] for row in rows if row[0]}


async def turned(transaction: Transaction, online: Mapping[str, bool], now_us: int) -> None:
    """Devices came or went: what is unanswered is due for those that are there."""
    came = sorted(device for device, there in online.items() if there)
    gone = sorted(device for device, there in online.items() if not there)
    if came:
        await transaction.execute(_BORN, came, now_us)
    if gone:
        await transaction.execute(_GONE, gone)


async def carried(
    transaction: Transaction, devices: Sequence[str], now_us: int
) -> dict[str, list[str]]:
    """What is on its way by stick, and has not expired: each device's payloads, the first first.

    `devices`: of these alone; none: of all.
    """
    which, values = (" AND device = ANY($2)", [list(devices)]) if devices else ("", [])
    found: dict[str, list[str]] = {}
    for device, payload in await transaction.fetch(_CARRIED.format(which=which), now_us, *values):
        found.setdefault(device, []).append(payload)
    return found


async def forget(transaction: Transaction, before_us: int) -> None:
    """Remove what ended, or expired, before then; rollouts.forget does so with a rollout's."""
    await transaction.execute(_FORGET, before_us)


async def found(
    transaction: Transaction,
    *,
    devices: Sequence[str] = (),
    ids: Sequence[str] = (),
    states: Sequence[str] = (),
    since_us: int = 0,
    most: int = 1000,
) -> list[Kept]:
    """Orders that changed since then, the last changed first; of these devices, ids, states."""
    where, values = ["changed_us >= $1"], list[object]([since_us, most])
    for column, some in (("device", devices), ("id", ids), ("state", states)):
        if some:
            values.append(sorted(set(some)))
            where.append(f"{column} = ANY(${len(values)})")
    sql = f"SELECT {_COLUMNS} FROM commands WHERE {' AND '.join(where)}"
    order = "ORDER BY changed_us DESC, device, id LIMIT $2"
    rows = await transaction.fetch(f"{sql} {order}", *values)
    return [_kept(*row) for row in rows]


def _kept(*row: Any) -> Kept:
    told = dict(zip(Kept.__struct_fields__, row, strict=True))
    result = told["result"]
    return Kept(**{**told, "result": msgspec.Raw(result.encode()) if result else None})

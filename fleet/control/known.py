"""What the controller knows of devices: whether they are there, their tags, and who is retired."""

from collections.abc import Iterable, Mapping, Sequence

from msgspec import Struct

from agent.errors import NotThere, RequestError
from agent.protocol.presence import Presence
from fleet.store.arrivals import is_name, plain
from fleet.store.database import Transaction

_PRESENCE = """
INSERT INTO presences (device, online, since_us, version) VALUES ($1, $2, $3, $4)
ON CONFLICT (device) DO UPDATE SET online = excluded.online, version = excluded.version,
since_us = CASE WHEN presences.online = excluded.online
    THEN presences.since_us ELSE excluded.since_us END
"""
_TAG = "INSERT INTO tags (device, tag) VALUES ($1, $2) ON CONFLICT (device, tag) DO NOTHING"
_UNTAG = "DELETE FROM tags WHERE device = $1 AND tag = $2"
_TAGGED = """
SELECT device FROM tags WHERE tag = ANY($1) AND device NOT IN (SELECT device FROM retired)
GROUP BY device HAVING count(*) = $2 ORDER BY device
"""
_ALL = """
SELECT device FROM presences UNION SELECT device FROM tags EXCEPT SELECT device FROM retired
ORDER BY device
"""
_OPEN = """
SELECT device, count(*) FROM commands WHERE ended_us IS NULL AND state <> 'planned'
GROUP BY device
"""


class Known(Struct, frozen=True):
    """A device; `online` is what its presence said last, None: nothing yet. `open` counts its
    orders without a last word. `retired`: nothing is ordered of it any more."""

    device: str
    online: bool | None
    since_us: int | None
    version: str | None
    tags: list[str]
    open: int
    retired: bool


async def presences(transaction: Transaction, said: Mapping[str, Presence], now_us: int) -> None:
    """Keep the last word of each device."""
    rows = [(one.device, one.online, now_us, plain(one.version)) for one in said.values()]
    await transaction.many(_PRESENCE, sorted(rows))


async def tag(transaction: Transaction, tag: str, devices: Iterable[str]) -> None:
    """Put a tag on devices, also on such as never came. Raises RequestError."""
    rows = [(device, tag) for device in sorted(set(devices))]
    for name in (tag, *(device for device, _ in rows)):
        if not is_name(name):
            raise RequestError(f"{name!r} is no name", "printable characters without / + and #")
    await transaction.many(_TAG, rows)


async def untag(transaction: Transaction, tag: str, devices: Iterable[str]) -> None:
    """Take a tag off devices."""
    await transaction.many(_UNTAG, [(device, tag) for device in sorted(set(devices))])


async def tagged(transaction: Transaction, tags: Sequence[str]) -> list[str]:
    """The devices that have all of these tags. Raises NotThere where none has."""
    wanted = sorted(set(tags))
    found = [row[0] for row in await transaction.fetch(_TAGGED, wanted, len(wanted))]
    if not found:
        raise NotThere(
            f"no device has {' and '.join(map(repr, wanted))}",
            "`holdfast-fleet tag ls` lists the tags",
        )
    return found


async def names(transaction: Transaction) -> list[str]:
    """All devices that came, or were tagged, and are not retired."""
    return [row[0] for row in await transaction.fetch(_ALL)]


async def devices(transaction: Transaction) -> list[Known]:
    """All that is known of each, by name."""
    there = {row[0]: row[1:] for row in await transaction.fetch("SELECT * FROM presences")}
    tags: dict[str, list[str]] = {}
    for device, word in await transaction.fetch("SELECT device, tag FROM tags ORDER BY tag"):
        tags.setdefault(device, []).append(word)
    waits = dict(map(tuple, await transaction.fetch(_OPEN)))
    out = {row[0] for row in await transaction.fetch("SELECT device FROM retired")}
    found = []
    for device in sorted({*there, *tags, *waits, *out}):
        online, since_us, version = there.get(device, (None, None, None))
        online = None if online is None else bool(online)
        told = (tags.get(device, []), int(waits.get(device, 0)), device in out)
        found.append(Known(device, online, since_us, version, *told))
    return found

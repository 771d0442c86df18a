"""What is missing, and where a device's ledger and this database differ. Computed in SQL.

A gap is a range of seqs below one that is known, neither stored whole nor told. Only streams with a
gap have spans, so asking costs by gaps, not by devices.

Sums are made as floating point, or as numeric: numbers that are nonsense, and too large to be added
up, must not end the question for all others. A double is exact up to 2**53.

By its ledger, a device has `delivered` what it has purged: all of that must be stored here, or it
is `lost`. What it counts as dropped it tells with the next batch of that stream, and of a stream
that is never sent (raw audio that became segments) not at all: the ledger is its word for that.

A conflict is a batch that was not stored since another record is, under a seq of the same epoch.
"""

from typing import Any

from msgspec import Struct, structs

from agent.errors import NotThere
from fleet.store.database import Transaction

GAPS_MAX = 10_000  # in one report; the rest is counted
_DEVICES = """
SELECT d.name, d.online, d.presence_us, d.heartbeat_us, d.version, d.ack_from, d.epoch, d.status,
    d.conditions, count(s.id), coalesce(sum(s.records), 0), coalesce(sum(s.size_bytes), 0),
    max(s.touched_us), coalesce(sum(s.spans), 0), coalesce(sum(s.unsettled), 0)
FROM devices d LEFT JOIN streams s ON s.device = d.id GROUP BY d.id ORDER BY d.name
"""
_GAPS = """
SELECT d.name, s.epoch, s.name, g.below + 1, g.first - 1, g.since_us FROM (
    SELECT p.stream, p.first, p.since_us, lag(p.last, 1, t.mark)
        OVER (PARTITION BY p.stream ORDER BY p.first) AS below
    FROM spans p JOIN streams t ON t.id = p.stream
) AS g JOIN streams s ON s.id = g.stream JOIN devices d ON d.id = s.device {where}
"""
_LEDGER = """
SELECT * FROM (
    SELECT d.name AS device, s.epoch, s.name AS stream, s.said_produced AS produced,
        s.said_delivered AS delivered, s.said_held AS held, s.said_dropped AS dropped, s.told,
        s.mark - s.told + coalesce((
            SELECT sum(CAST(p.last - p.first + 1 AS double precision))
            FROM spans p WHERE p.stream = s.id), 0) AS stored
    FROM streams s JOIN devices d ON d.id = s.device WHERE s.said_produced IS NOT NULL {and_where}
) AS ledger WHERE delivered > stored OR produced <> CAST(delivered AS numeric) + held + dropped
ORDER BY device, epoch, stream LIMIT $1
"""
_KNOWN = "SELECT 1 FROM devices WHERE name = $1"
_COUNT = """
SELECT count(*), coalesce(sum(CAST(g.first - 1 - g.below AS double precision)), 0) FROM (
    SELECT p.first, lag(p.last, 1, s.mark)
        OVER (PARTITION BY p.stream ORDER BY p.first) AS below
    FROM spans p JOIN streams s ON s.id = p.stream JOIN devices d ON d.id = s.device {where}
) AS g
"""


_CONFLICTS = """
SELECT d.name, s.epoch, s.name, min(r.first), max(r.last), count(*), min(r.first_us), max(r.last_us)
FROM refused r JOIN streams s ON s.id = r.stream JOIN devices d ON d.id = s.device
WHERE r.conflict {and_where} GROUP BY d.name, s.epoch, s.name ORDER BY d.name, s.epoch, s.name
LIMIT $1
"""


class Device(Struct, frozen=True):
    """A device as the database knows it. Times are microseconds since 1970, by this side's clock.

    `online` is what its presence said last; None: nothing yet. `gaps` and `unfinished` count the
    ranges that are missing, and the blobs that are begun.
    """

    device: str
    online: bool | None
    presence_us: int | None
    heartbeat_us: int | None
    version: str | None
    ack_from: str | None
    epoch: str | None
    status: str | None
    conditions: str | None
    streams: int
    records: int
    size_bytes: int
    stored_us: int | None
    gaps: int
    unfinished: int


class Gap(Struct, frozen=True):
    """Seqs first..last are missing; that is known since `since_us`."""

    device: str
    epoch: str
    stream: str
    first: int
    last: int
    since_us: int


class Difference(Struct, frozen=True):
    """A stream whose ledger, as the device told it last, does not fit what is here.

    `lost`: counted as delivered by the device, and not stored. `unexplained`: produced, and by the
    device's own word neither delivered, nor held, nor dropped.
    """

    device: str
    epoch: str
    stream: str
    produced: int
    delivered: int
    held: int
    dropped: int
    told: int
    stored: int

    @property
    def lost(self) -> int:
        """Records that the device has purged, and that are not here."""
        return max(0, self.delivered - self.stored)

    @property
    def unexplained(self) -> int:
        """Records that its ledger does not account for; below 0: that it counts twice."""
        return self.produced - self.delivered - self.held - self.dropped


class Conflict(Struct, frozen=True):
    """A device has given out seqs of a stream twice: its disk was put back from a copy, or two
    devices have one.

    `batches` of it were not stored, with seqs from `first` to `last`: what is stored there, or
    right before, is another record.
    """

    device: str
    epoch: str
    stream: str
    first: int
    last: int
    batches: int
    since_us: int
    last_us: int


class Report(Struct, frozen=True):
    """What `holdfast-fleet gaps` shows; `gaps_total` counts those beyond GAPS_MAX too."""

    gaps: list[Gap]
    gaps_total: int
    differences: list[Difference]
    conflicts: list[Conflict] = []

    @property
    def is_balanced(self) -> bool:
        """Whether no device counts as delivered what is not stored, or holds what cannot be."""
        return not self.conflicts and not any(one.lost for one in self.differences)

    def document(self) -> dict[str, Any]:
        """As `--json` prints it."""
        return {
            "gaps": self.gaps,
            "gaps_total": self.gaps_total,
            "differences": [
                {**structs.asdict(one), "unexplained": one.unexplained, "lost": one.lost}
                for one in self.differences
            ],
            "conflicts": self.conflicts,
        }


class Census(Struct, frozen=True):
    """Numbers of the whole database; `missing` counts seqs."""

    devices: dict[str, int]
    gaps: int
    missing: int


async def devices(transaction: Transaction) -> list[Device]:
    """Every device, by name."""
    found = []
    for name, online, *rest in await transaction.fetch(_DEVICES):
        numbers = [None if one is None else int(one) for one in rest[7:]]
        found.append(Device(name, None if online is None else bool(online), *rest[:7], *numbers))
    return found


async def report(transaction: Transaction, device: str | None) -> Report:
    """Of one device, or of all. Raises NotThere for a device that never came."""
    if device is not None and not await transaction.fetch(_KNOWN, device):
        raise NotThere(
            f"{device}: nothing ever came from a device of that name",
            "`holdfast-fleet devices` lists those that are known",
        )
    values = [] if device is None else [device]
    gaps_sql = _GAPS.format(where="" if device is None else "WHERE d.name = $2")
    gaps = await transaction.fetch(
        f"{gaps_sql} ORDER BY d.name, s.epoch, s.name, g.first LIMIT $1", GAPS_MAX, *values
    )
    total = await _count(transaction, device)
    ledger_sql = _LEDGER.format(and_where="" if device is None else "AND d.name = $2")
    differences = await transaction.fetch(ledger_sql, GAPS_MAX, *values)
    conflicts_sql = _CONFLICTS.format(and_where="" if device is None else "AND d.name = $2")
    conflicts = await transaction.fetch(conflicts_sql, GAPS_MAX, *values)
    return Report(
        [Gap(*row) for row in gaps],
        total[0],
        [Difference(*row[:3], *map(int, row[3:])) for row in differences],
        [Conflict(*row) for row in conflicts],
    )


async def census(transaction: Transaction) -> Census:
    """What the metrics tell."""
    rows = await transaction.fetch("SELECT online, count(*) FROM devices GROUP BY online")
    states = {"online": 0, "offline": 0, "unknown": 0}
    for online, count in rows:
        states["unknown" if online is None else "online" if online else "offline"] = count
    gaps, missing = await _count(transaction, None)
    return Census(states, gaps, missing)


async def _count(transaction: Transaction, device: str | None) -> tuple[int, int]:
    """How many gaps, and how many seqs in them."""
    sql = _COUNT.format(where="" if device is None else "WHERE d.name = $1")
    ((gaps, missing),) = await transaction.fetch(sql, *([] if device is None else [device]))
    return int(gaps), int(missing)

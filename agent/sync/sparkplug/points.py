"""The metrics of the node, by name, as a look at the device gives them.

Which there are follows from the configuration alone, but for its domains, which may change.
"""

from msgspec import Struct

from agent import VERSION
from agent.sync.plant import orders
from agent.sync.plant.seen import Seen
from agent.sync.sparkplug.payload import DataType, Value

BDSEQ = "bdSeq"
REBIRTH, REBOOT, RESTART = "Node Control/Rebirth", "Node Control/Reboot", "Node Control/Restart"
PAUSED, NOW = "Sync/Paused", "Sync/Now"
CONTROLS = {REBOOT: orders.REBOOT, RESTART: orders.RESTART, NOW: orders.NOW}
TEMPERATURE_BAND_C = 0.5
PACE_BAND = 0.1  # of a time
WORD_CHARS_MAX = 600


class Point(Struct, frozen=True):
    """A metric's type and value (None: null); a change by less than `band` is none."""

    datatype: DataType
    value: Value | None
    band: float = 0.0

    def moved(self, before: "Point") -> bool:
        """Whether it is another value than that."""
        now, then = self.value, before.value
        if not self.band or not isinstance(now, float) or not isinstance(then, float):
            return now != then
        return abs(now - then) >= self.band


def points(seen: Seen, device: str, last_order: str) -> dict[str, Point]:
    """All but bdSeq, which each session has of its own."""
    return {
        REBIRTH: _flag(False),
        **{name: _flag(False) for name, verb in CONTROLS.items() if verb in seen.orders},
        "Properties/Device": _text(device),
        "Properties/Version": _text(VERSION),
        "Health/Status": _text(seen.status),
        "Health/Problems": Point(DataType.INT32, len(seen.problems)),
        "Health/Conditions": _text(", ".join(f"{c.name} {c.subject}" for c in seen.conditions)),
        "Health/Safe Mode": _flag(seen.safe_mode),
        "Clock/Trusted": _flag(seen.clock_trusted),
        "Link/Connected": _flag(seen.connected),
        PAUSED: _flag(seen.paused),
        "Sync/Backlog Records": _count(seen.backlog_records),
        "Sync/Backlog Bytes": _count(seen.backlog_bytes),
        **_ledger(seen),
        "Hardware/CPU Temperature C": _warmth(seen.cpu_c),
        "Hardware/Accelerator Temperature C": _warmth(seen.accelerator_c),
        "Orders/Last": _text(last_order),
        **_domains(seen),  # last: they come and go, and the aliases of the others stay
    }


def _ledger(seen: Seen) -> dict[str, Point]:
    of = seen.ledger
    counts = (of.produced, of.delivered, of.held, sum(of.dropped.values())) if of else (None,) * 4
    names = ("Produced", "Delivered", "Held", "Dropped")
    return {f"Ledger/{name}": _count(one) for name, one in zip(names, counts, strict=True)}


def _domains(seen: Seen) -> dict[str, Point]:
    found = {}
    for name, one in sorted(seen.domains.items()):
        found[f"Domains/{name}/Ready"] = _flag(one.ready)
        found[f"Domains/{name}/Execution Provider"] = _text(one.ep)
        band = PACE_BAND * (one.p95_ms or 0.0)
        found[f"Domains/{name}/P95 ms"] = Point(DataType.DOUBLE, one.p95_ms, band)
    return found


def _flag(value: bool) -> Point:
    return Point(DataType.BOOLEAN, value)


def _text(value: str) -> Point:
    return Point(DataType.STRING, value[:WORD_CHARS_MAX])


def _count(value: int | None) -> Point:
    return Point(DataType.INT64, value)


def _warmth(value: float | None) -> Point:
    return Point(DataType.DOUBLE, value, TEMPERATURE_BAND_C)

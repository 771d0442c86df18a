"""What the device tells of its own version, without being asked."""

from msgspec import Struct

from agent.host.slots.layout import Slots
from agent.updates.slots.record import Record


class WentBack(Struct, frozen=True):
    """A version that did not prove itself, and why."""

    version: str
    why: str


class Running(Struct, frozen=True):
    """The version that runs, and whether it has yet to prove itself; `other` is in the other slot
    (null: none is, or there are no slots). `went_back`: the last update, where it came to that."""

    version: str
    on_trial: bool = False
    other: str | None = None
    went_back: WentBack | None = None


def running(version: str, slots: Slots | None, record: Record) -> Running:
    """As the files say it now; `version` is this process's own. It blocks."""
    if slots is None:
        return Running(version)
    trial, other = slots.trial(), slots.there(slots.other)
    back = record.state == "back" and record.slot != slots.running
    return Running(
        version,
        trial is not None and trial.slot == slots.running,
        other.version if other else None,
        WentBack(record.version, record.why) if back else None,
    )

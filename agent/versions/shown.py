"""What the doors show of the versions."""

from typing import Literal

from msgspec import Struct

from agent.versions.forms import NO_CHANGE, Book, Confirm, Step, Version


class VersionShown(Version, frozen=True):
    """A version that is kept; `state` is the last that became of it ("": nothing yet)."""

    state: Literal["", "chosen", "started", "in_force", "confirmed", "taken_back"] = ""


class TrialShown(Struct, frozen=True):
    """`former` comes back after `left_s`, unless the version is confirmed (null: not counted)."""

    former: int
    confirm: Confirm
    confirm_s: float
    left_s: float | None
    starts: int
    faults: list[str]


class ConfigShown(Struct, frozen=True):
    """Which version is live, which one is confirmed, and those that are kept, the newest first.

    `in_force` is the version that this run of the agent is on; 0: the file of --config itself.
    `waits` are sections that differ from the live version until the agent is restarted. `steps` are
    the last changes, the newest first; `taken_back` is the last that came by itself, until another
    version is confirmed.
    """

    live: int
    confirmed: int
    in_force: int
    file: str
    waits: dict[str, str]
    trial: TrialShown | None
    taken_back: Step | None
    versions: list[VersionShown]
    steps: list[Step]


class DocumentShown(Struct, frozen=True):
    """A version as it is written, what looks like a password masked; the digest is of all of it."""

    number: int
    digest: str
    document: str


class ConfigApplied(Struct, frozen=True):
    """What an order did, or would do: `state` is `same` where there is nothing to change.

    `changed` are the sections that differ from what is in force, `restart` those that take a
    restart, with why; `lost` is what the new document has no more.
    """

    number: int
    state: Literal["same", "dry_run", "trial", "confirmed", "taken_back"]
    changed: list[str] = []
    restart: dict[str, str] = {}
    lost: str = ""
    why: str = ""


def applied(book: Book, ended: Step) -> ConfigApplied:
    """What an order did, by the last step of what it has chosen."""
    chosen = [one for one in book.steps if (one.order, one.state) == (ended.order, "chosen")]
    change = chosen[-1].change if chosen else NO_CHANGE  # it was so long ago that it is forgotten
    restart = {name: why for name, why in change.sections.items() if why}
    state: Literal["confirmed", "taken_back"] = (
        "confirmed" if ended.state == "confirmed" else "taken_back"
    )
    return ConfigApplied(
        ended.number, state, list(change.sections), restart, change.lost, ended.why
    )


def versions(book: Book) -> list[VersionShown]:
    """The newest first."""
    last = {step.number: step.state for step in book.steps}
    return [
        VersionShown(
            *(one.number, one.digest, one.size_bytes, one.origin, one.who, one.why, one.at_us),
            state=last.get(one.number, ""),
        )
        for one in reversed(book.versions)
    ]

"""What the controller's commands show people."""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import msgspec
from rich.console import Console

from agent.words import counted, printable
from fleet.control.book import Kept
from fleet.control.reports import Report, WayBack
from fleet.control.twins import Desiring, Twin
from fleet.table import Table, show
from fleet.view import age, plain

_COLOURS = {
    **dict.fromkeys(("succeeded", "finished"), "green"),
    **dict.fromkeys(("failed", "refused", "interrupted", "late", "aborted"), "red"),
    **dict.fromkeys(("expired", "lapsed", "withdrawn", "paused"), "yellow"),
}
_COUNTS = {
    "good": "succeeded",
    "bad": "failed",
    "missed": "too late for it",
    "in_flight": "at it",
    "ready": "to come",
    "away": "away",
    "gone": "gone with it",
}


def commands(found: Sequence[Kept]) -> None:
    """One line each."""
    console = Console(highlight=False)
    rows = Table("device", "id", "command", "state", ">sent", ">changed", "message")
    for one in found:
        rows.add_row(
            *map(plain, (one.device, one.id, one.name)),
            _state(one.state, one.progress),
            *(str(one.sends), age(one.changed_us)),
            plain(_why(one)),
        )
    show(console, rows, "no commands")


def event(one: Kept) -> None:
    """One line, with the time."""
    at = datetime.fromtimestamp(one.changed_us / 1e6, UTC).astimezone()
    words = " ".join(map(plain, (one.device, one.id, one.name)))
    state = _state(one.state, one.progress)
    line = f"{at:%H:%M:%S}  {words}  {state}  {plain(_why(one))}".rstrip()
    Console(highlight=False, soft_wrap=True).print(line)


def rollouts(found: Sequence[Report]) -> None:
    """One line each."""
    console = Console(highlight=False)
    rows = Table("id", "command", "state", ">step", ">devices", ">done", ">failed", ">age", "cause")
    for one in found:
        counts = one.counts
        done = counts["good"] + counts["bad"] + counts["missed"]
        rows.add_row(
            *map(plain, (one.id, one.name)),
            _state(one.state),
            f"{one.step}/{len(one.steps)}",
            *(f"{one.members:,}", f"{done:,}", f"{counts['bad']:,}", age(one.made_us)),
            plain(one.cause),
        )
    show(console, rows, "no rollouts")


def rollout(one: Report) -> None:
    """Where it stands, who failed, and whom the way back has not taken back."""
    console = Console(highlight=False)
    cause = f": {plain(one.cause)}" if one.cause else ""
    console.print(f"{plain(one.id)}  {plain(one.name)}  {_state(one.state)}{cause}")
    steps = ", ".join(f"{step:,}" for step in one.steps)
    console.print(f"step {one.step} of {len(one.steps)} (up to {steps} devices)")
    told = [f"{one.counts[key]:,} {word}" for key, word in _COUNTS.items() if one.counts[key]]
    console.print(f"{counted(one.members, 'device')}: {', '.join(told)}")
    if one.failed:
        rows = Table("device", "state", "reason", "rollback", "message")
        for member in one.failed:
            rows.add_row(
                *(plain(member.device), _state(member.state), plain(member.reason)),
                *(plain(member.back), plain(member.message)),
            )
        show(console, rows)
    if one.back is not None and any(one.back.counts.values()):
        _way_back(console, one.back)


def _way_back(console: Console, one: WayBack) -> None:
    """Counted, with those that it has not taken back."""
    told = [f"{number:,} {word}" for word, number in one.counts.items() if number]
    console.print(f"way back, {plain(one.name)}: {', '.join(told)}")
    rows = Table("device", "rollback", "reason", "message")
    for each in (*one.failed, *one.open):
        reason = plain(each.reason)
        rows.add_row(plain(each.device), _state(each.state), reason, plain(each.message))
    if one.failed or one.open:
        show(console, rows)


def tags(found: Mapping[str, Sequence[str]]) -> None:
    """One line each."""
    console = Console(highlight=False)
    rows = Table("tag", ">devices", "which")
    for name, devices in sorted(found.items()):
        rows.add_row(plain(name), f"{len(devices):,}", plain(", ".join(devices)))
    show(console, rows, "no tags")


def device(one: Mapping[str, Any]) -> None:
    """All that is known of it."""
    console = Console(highlight=False)
    there = {True: "online", False: "offline", None: "unknown"}[one["online"]]
    there = f"retired, {there}" if one["retired"] else there
    said = [there, one["status"] or "", f"version {one['version']}" if one["version"] else ""]
    console.print(f"{plain(one['device'])}: {plain(', '.join(filter(None, said)))}")
    heard = max((one[key] or 0 for key in ("presence_us", "heartbeat_us", "stored_us")), default=0)
    console.print(f"heard {age(heard or None) or 'never'} ago; {one['records']:,} records stored")
    for name, some in (("tags", one["tags"]), ("conditions", _names(one["conditions"]))):
        if some:
            console.print(f"{name}: {plain(', '.join(some))}")
    commands(one["commands"])
    if one["twin"] is not None and (one["twin"].version or one["twin"].reported):
        twin(one["twin"])


def _names(conditions: str | None) -> list[str]:
    """Of the conditions that the last heartbeat told."""
    found = msgspec.json.decode(conditions) if conditions else []
    return [str(one.get("name", "")) for one in found if isinstance(one, dict)]


def twin(one: Twin) -> None:
    """Both documents."""
    console = Console(highlight=False, soft_wrap=True)
    waits = ", not published yet" if one.due else ""
    console.print(f"{plain(one.device)}: desired version {one.version}{waits}")
    for name, document in (("desired", one.desired), ("reported", one.reported)):
        if document is not None:
            console.print(name)
            written = msgspec.json.format(msgspec.json.encode(document), indent=2).decode()
            for line in written.splitlines():
                console.print(plain(line))


def desiring(found: Desiring) -> None:
    """What is wanted: of one device in full."""
    if len(found.twins) == 1:
        twin(found.twins[0])
    elif found.twins:
        print(f"{counted(len(found.twins), 'device')}: wanted, not published yet")
    for name, why in found.left_out.items():
        print(f"left out: {printable(name)}: {why}")


def _why(one: Kept) -> str:
    """The reason, where it says more than the state, and the message."""
    reason = "" if one.reason == one.state else one.reason
    return ": ".join(filter(None, (reason, one.message)))


def _state(state: str, progress: float | None = None) -> str:
    """In its colour."""
    word = f"{state} {progress:.0%}" if progress is not None and state == "running" else state
    colour = _COLOURS.get(state)
    return f"[{colour}]{plain(word)}[/]" if colour else plain(word)

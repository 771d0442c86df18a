"""What is told of a command, at every door alike."""

from typing import get_args

import msgspec

from agent.protocol.commands import Reason, Result
from agent.store.journal import Entry, Refusal

_REASONS = frozenset(get_args(Reason))


def result(entry: Entry, device: str, progress: float | None = None, message: str = "") -> Result:
    """What the journal knows of a command; `progress` and `message` while it runs."""
    return Result(
        id=entry.id,
        name=entry.name,
        device=device,
        state=entry.state,
        number=entry.number,
        progress=progress,
        message=entry.message or message,
        hint=entry.hint,
        reason=_reason(entry.reason),
        result=msgspec.Raw(entry.result) if entry.result else None,
        at_us=entry.ended_us or entry.accepted_us,
    )


def refusal(refused: Refusal, device: str) -> Result:
    """What was not accepted."""
    return Result(
        id=refused.id,
        name=refused.name,
        device=device,
        state="refused",
        message=refused.message,
        hint=refused.hint,
        reason=_reason(refused.reason),
        at_us=refused.at_us,
    )


def _reason(kept: str) -> Reason:
    """A reason of the file; one that a newer Holdfast wrote there is just a failure."""
    return kept if kept in _REASONS else "failed"  # type: ignore[return-value]

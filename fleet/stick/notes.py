"""What is told people of an imported bundle."""

from collections.abc import Sequence

from agent.protocol import bundle
from agent.protocol.commands import Result
from agent.words import counted, quoted
from fleet.store.cloud import Verdict

REFUSALS_MAX = 10  # that are named
WHY_CHARS_MAX = 300


def notes(
    header: bundle.Header,
    missing: list[int],
    verdict: Verdict,
    unread: int,
    refused: Sequence[Result],
    *,
    known: bool,
    last_known: bool,
) -> list[str]:
    """What is worth a word: `missing` parts, what was not stored, ends of commands that are unread,
    commands that the device has `refused`.

    `known`: this file came before, `last_known`: the last part of its export did.
    """
    notes = []
    if known:
        notes.append("this very file was imported before")
    earlier = [part for part in missing if part < header.part]
    if earlier:
        notes.append(f"{_parts(earlier)} not come yet: what is there stays on the device")
    elif not missing and not last_known:
        notes.append(f"part {header.part + 1} of this export has not come yet")
    if verdict.refused:
        what = counted(verdict.refused, "message in it", "messages in it")
        notes.append(f"{what} cannot be stored, and kept as refused")
    if unread:
        what = counted(unread, "record")
        notes.append(f"{what} of how a command ended cannot be read: update Holdfast here")
    for one in refused[:REFUSALS_MAX]:
        why = quoted(one.message, WHY_CHARS_MAX)
        notes.append(f"order {one.id} ({one.name}) was refused ({one.reason}): {why}")
    if (more := len(refused) - REFUSALS_MAX) > 0:
        notes.append(f"{counted(more, 'order')} more were refused: holdfast-fleet commands")
    return notes


def _parts(numbers: list[int]) -> str:
    named = ", ".join(map(str, numbers[:10])) + (", ..." if len(numbers) > 10 else "")
    one, many = f"part {named} of this export has", f"parts {named} of this export have"
    return one if len(numbers) == 1 else many

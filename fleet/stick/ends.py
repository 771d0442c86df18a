"""How commands ended, or were refused, as a device's records of the stream `commands` say it.

Limits  : a record is as large as its batch lets it be. What is no such record is left out, and
          counted: it is stored as all others are.
"""

from typing import Any, Literal

import msgspec
from msgspec import Struct

from agent.errors import ProtocolError
from agent.protocol import batch
from agent.protocol.commands import CommandId, CommandName, Reason, Result
from agent.records import RecordType

STREAM = "commands"


class End(Struct, frozen=True, kw_only=True):
    """The body of a record, as far as the controller's tables have it; `ended_us` is a label."""

    id: CommandId
    name: CommandName
    state: Literal["succeeded", "failed", "expired", "interrupted", "refused"]
    number: int = 0
    reason: Reason = ""
    message: str = ""
    hint: str = ""
    result: Any = None
    ended_us: int | None = None


def ends(device: str, payload: bytes) -> tuple[list[Result], int]:
    """The last words in a batch of that stream, and how many of its records cannot be read.

    Nothing of a batch that is damaged: the store refuses it.
    """
    found, unread = list[Result](), 0
    try:
        _, events = batch.decode(payload)
    except ProtocolError:
        return found, unread
    for event in events:
        if event.type != RecordType.COMMAND:
            continue
        try:
            end = msgspec.json.decode(event.data, type=End)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            unread += 1
            continue
        fields = msgspec.structs.asdict(end)
        at_us = fields.pop("ended_us") or 0
        found.append(Result(device=device, at_us=at_us, **fields))
    return found, unread

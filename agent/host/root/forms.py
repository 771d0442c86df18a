"""What agent and root daemon say to each other: one line of JSON each way, then the end.

An order is `{"verb": "reboot"}`; with `"dry_run": true` nothing is done, and the answer says what
would be. The answer is `{"done": ...}` or `{"error": ..., "hint": ...}`.
"""

from typing import Annotated, Literal, Union

import msgspec
from msgspec import Meta, Struct

LINE_BYTES_MAX = 256  # of an order; the longest one has 47
ANSWER_BYTES_MAX = 4096
TEXT_CHARS_MAX = 400  # of what a program said
MODE_MAX = 15  # of nvpmodel: boards have modes 0 to 8 at most


class _Order(Struct, frozen=True, forbid_unknown_fields=True, tag_field="verb"):
    dry_run: bool = False


class Reboot(_Order, frozen=True, tag="reboot"):
    """End everything in order, and begin the machine anew."""


class Reset(_Order, frozen=True, tag="reset"):
    """Reset the machine at once, by the kernel's magic SysRq: sync, remount read-only, reset."""


class Nvpmodel(_Order, frozen=True, tag="nvpmodel", kw_only=True):
    """Set the power mode of a Jetson."""

    mode: Annotated[int, Meta(ge=0, le=MODE_MAX)]


class Slots(_Order, frozen=True, tag="slots", kw_only=True):
    """See to the agent's slots (docs/agent-update.md).

    build: put the package that the agent has ready into the other slot, if it is signed; switch: to
    that slot, on trial; confirm: the version on trial stays; back: it does not.
    """

    act: Literal["build", "switch", "confirm", "back"]


Order = Union[Reboot, Reset, Nvpmodel, Slots]  # noqa: UP007 (msgspec reads it at run time, Python 3.11)
VERBS = ("nvpmodel", "reboot", "reset", "slots")


class Done(Struct, frozen=True, forbid_unknown_fields=True):
    """It was done, or begun; in words."""

    done: str


class Refused(Struct, frozen=True, forbid_unknown_fields=True):
    """It was not done: why, and what to do."""

    error: str
    hint: str = ""


Answer = Union[Done, Refused]  # noqa: UP007
_order: msgspec.json.Decoder[Order] = msgspec.json.Decoder(Order)
_encoder = msgspec.json.Encoder()


def order_of(line: bytes) -> Order:
    """The order in a line. Raises ValueError, which says what is wrong with it."""
    try:
        return _order.decode(line)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"{error}; the verbs are {', '.join(VERBS)}") from error


def answer_of(line: bytes) -> Answer:
    """The answer in a line. Raises msgspec.MsgspecError, UnicodeDecodeError."""
    found = msgspec.json.decode(line, type=dict[str, str])
    return msgspec.convert(found, Done) if "done" in found else msgspec.convert(found, Refused)


def line_of(what: Order | Answer) -> bytes:
    """As it goes over the socket."""
    return _encoder.encode(what) + b"\n"


def cut(text: str) -> str:
    """What a program said, on one line, its end."""
    printed = "".join(one if one.isprintable() else " " for one in text)
    return " ".join(printed.split())[-TEXT_CHARS_MAX:]

"""Commands and their results: the same words at every door (MQTT, HTTP, CLI, a bundle).

A command travels as JSON, plain or signed. Signed, its text is carried as it was when it was
signed, so that nobody has to write JSON in the same way twice:

    {"id": "roll-7.plant-4", "name": "sync.pause", "args": {"for_s": 3600}}
    {"signed": "{\"id\": ...}", "by": "hf1pub:...", "signature": "BASE64"}

Limits: COMMAND_BYTES_MAX of a command, RESULT_BYTES_MAX of a result.
"""

from datetime import datetime
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct

from agent.errors import ProtocolError
from agent.forms import DeviceId
from agent.protocol import signed, signing
from agent.protocol.envelope import from_json
from agent.protocol.signed import Signed
from agent.words import quoted

COMMAND_BYTES_MAX = 256 << 10
RESULT_BYTES_MAX = 256 << 10
DEPTH_MAX = 32  # of what stands in `args`, one in the other
COMMAND = b"holdfast command 1\0"  # what a command's signature begins with

END = r"$(?!\n)"  # Python's $ lets a last line feed through, JSON Schema's does not
MESSAGE_CHARS_MAX = 600  # of what an Unread says: it may quote all that came

CommandId = Annotated[
    str,
    Meta(
        pattern=rf"^[A-Za-z0-9][A-Za-z0-9_.:-]{{0,63}}{END}",
        description="an id of 1 to 64 letters, digits, _, ., : and -",
    ),
]
CommandName = Annotated[
    str,
    Meta(
        pattern=rf"^[a-z][a-z0-9_]{{0,31}}(\.[a-z][a-z0-9_]{{0,31}}){{0,2}}{END}",
        description="a command's name, as sync.pause",
    ),
]
Instant = Annotated[datetime, Meta(tz=True)]
Door = Literal["mqtt", "http", "bundle", "twin", "plant"]
State = Literal["accepted", "running", "succeeded", "failed", "expired", "interrupted", "refused"]
ENDED: tuple[State, ...] = ("succeeded", "failed", "expired", "interrupted", "refused")
Reason = Literal[
    "",
    "unreadable",  # no command in this form
    "unknown_command",
    "bad_args",
    "id_taken",  # the id is that of another command
    "too_old",  # expired, or older than what the journal still knows
    "wrong_device",
    "not_signed",  # it must be, and is not
    "not_trusted",  # the key is none of those that give orders
    "bad_signature",
    "not_allowed",
    "full",  # the journal is
    "not_now",  # the command cannot be done as things stand
    "failed",
    "timeout",
    "interrupted",  # the agent ended meanwhile, and it cannot be gone on with
    "cancelled",  # by another order, before it had begun: it had no effect
]


class Command(Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """One order. Its `id` is its identity: the same id has one effect, however often it comes.

    `device` binds it to one device; a signed one must say so. `issuer` is who ordered it, a label
    unless it is signed. `issued` and `expires` are UTC; without `expires` it does not expire.
    """

    id: CommandId
    name: CommandName
    args: dict[str, Any] = {}
    device: DeviceId | None = None
    issuer: Annotated[str, Meta(max_length=128)] = ""
    issued: Instant | None = None
    expires: Instant | None = None


class Result(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What became of a command; the last one of an id is final (ENDED), and told until it is taken.

    `number` counts the device's commands (0: it was not accepted). `progress` is a share. `reason`
    is for programs, `message` and `hint` for people. `at_us` is a wall label.
    """

    id: str
    name: str
    device: str
    state: State
    number: int = 0
    progress: float | None = None
    message: str = ""
    hint: str = ""
    reason: Reason = ""
    result: Any = None
    at_us: int = 0

    @property
    def ended(self) -> bool:
        """Whether this is the last word."""
        return self.state in ENDED


class Order(Struct, frozen=True):
    """A command as it was read; `by` is whose signature it carries, and `text` what was signed."""

    command: Command
    by: str = ""


def sign(command: Command, key: signing.Key) -> bytes:
    """The command as signed JSON."""
    return signed.sign(msgspec.json.encode(command), key, COMMAND)


def decode(payload: bytes) -> Order:
    """JSON as a command, its signature checked if it has one.

    Whether the key is believed is the caller's to judge. Raises Unread: its `id` and `name` are
    those that could still be made out, so that whoever waits is told; `reason` says why.
    """
    if len(payload) > COMMAND_BYTES_MAX:
        raise Unread(
            f"a command of {len(payload)} bytes; expected {COMMAND_BYTES_MAX} at most", "unreadable"
        )
    shallow = _object(payload)
    if "signed" not in shallow:
        return Order(_command(payload, shallow))
    try:
        given = from_json(payload, Signed)
    except ProtocolError as error:
        raise Unread(str(error), "unreadable") from error
    text = given.signed.encode()
    inner = _object(text)
    try:
        signed.check(given, COMMAND)
    except ProtocolError as error:
        raise Unread(str(error), "bad_signature", *_told(inner)) from error
    return Order(_command(text, inner), given.by)


class Unread(ProtocolError):
    """What came is no command that can be taken."""

    def __init__(self, message: str, reason: Reason, id: str = "", name: str = "") -> None:
        super().__init__(
            quoted(message, MESSAGE_CHARS_MAX), "see docs/commands.md for the form of a command"
        )
        self.reason: Reason = reason
        self.id = id
        self.name = name


def _object(payload: bytes) -> dict[str, Any]:
    try:
        found = msgspec.json.decode(payload)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Unread(f"not JSON: {error}", "unreadable") from error
    if not isinstance(found, dict):
        raise Unread("not a JSON object", "unreadable")
    return found


def _command(text: bytes, shallow: dict[str, Any]) -> Command:
    try:
        command = from_json(text, Command)
    except ProtocolError as error:
        raise Unread(str(error), "unreadable", *_told(shallow)) from error
    if wrong := too_deep(command.args):
        raise Unread(wrong, "bad_args", command.id, command.name)
    return command


def too_deep(args: dict[str, Any]) -> str:
    """What is wrong with args in which too much stands one in the other; "": nothing."""
    wrong = _depth(args) > DEPTH_MAX
    return f"args: more than {DEPTH_MAX} levels, one in the other" if wrong else ""


def _told(shallow: dict[str, Any]) -> tuple[str, str]:
    """The id and the name, as far as they can be told back."""
    found = shallow.get("id"), shallow.get("name")
    name, verb = (quoted(one) if isinstance(one, str) else "" for one in found)
    return name, verb


def _depth(value: Any) -> int:
    """How many levels stand one in the other; without recursion, for it is somebody else's."""
    depth, level = 0, [value]
    while level:
        depth += 1
        level = [
            inner
            for outer in level
            if isinstance(outer, (dict, list))
            for inner in (outer.values() if isinstance(outer, dict) else outer)
        ]
    return depth

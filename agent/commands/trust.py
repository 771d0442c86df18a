"""Who may order what: pure judgement of a command that was read, before the journal knows of it."""

from collections.abc import Collection, Sequence
from typing import Any, Literal, NamedTuple

from msgspec import Struct

from agent.commands.verb import Verb
from agent.protocol.commands import Order, Reason
from agent.words import quoted

AHEAD_S = 300.0  # how far a signer's clock may be ahead of ours
FOLDERS = ("/", "file://")


class Refused(Exception):
    """The command is not taken: why, in words and for programs."""

    def __init__(self, reason: Reason, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.reason: Reason = reason
        self.hint = hint


class Rules(NamedTuple):
    """Section `commands` of the settings, and who this is."""

    device: str
    signed: Literal["never", "grave", "all"]
    keys: Sequence[str]
    from_plant: Collection[str] = ()


def addressed(order: Order, rules: Rules) -> None:
    """It is for this device. Raises Refused."""
    named = order.command.device
    if named not in (None, rules.device):
        raise Refused(
            "wrong_device",
            f"the command is for device {named}; this is {rules.device}",
            "send it to that device's topic",
        )


def believed(order: Order, verb: Verb[Any] | None, rules: Rules, *, bound: bool = True) -> None:
    """Whoever gave it over the link may do so; `verb` None: nobody knows the command.

    Raises Refused. A signature that is there must be one of ours, also where none is asked for;
    where it is the command's own, the command must be `bound` to device and time.
    """
    if order.by:
        known(order.by, rules)
        if bound:
            _bound(order)
        return
    if signed(verb, rules):
        raise Refused(
            "not_signed",
            f"commands.signed is {rules.signed}: this command must be signed",
            "sign it: holdfast-fleet send --sign KEYFILE",
        )


def trusted(verb: Verb[Any] | None, rules: Rules) -> None:
    """The other systems of the site, which cannot sign, may order it. Raises Refused."""
    if signed(verb, rules) and (verb is None or verb.name not in rules.from_plant):
        raise Refused(
            "not_signed",
            f"commands.signed is {rules.signed}, and this command is not in commands.from_plant",
            "name it there, if whoever may publish to that topic may order it",
        )


def signed(verb: Verb[Any] | None, rules: Rules) -> bool:
    """Whether it takes a signature from afar."""
    grave = verb is None or verb.grave or verb.scope == "admin"
    return rules.signed == "all" or (rules.signed == "grave" and grave)


def known(by: str, rules: Rules) -> None:
    """The signer gives orders here. Raises Refused."""
    if by not in rules.keys:
        raise Refused(
            "not_trusted",
            f"it is signed by {by}, who gives no orders here",
            "add the key to commands.keys, if it is one of yours",
        )


def _bound(order: Order) -> None:
    """A signed command that could be carried elsewhere, or kept for later, is none."""
    command = order.command
    missing = [key for key in ("device", "issued", "expires") if getattr(command, key) is None]
    if missing:
        raise Refused(
            "not_trusted",
            f"a signed command must name {', '.join(missing)}",
            "without them it could be replayed, here or elsewhere",
        )


def allowed(verb: Verb[Any], scopes: Collection[str] | None) -> None:
    """A local caller may order it; `scopes` None: the door asks nobody. Raises Refused."""
    holds(verb.name, verb.scope, scopes)


def holds(name: str, scope: str, scopes: Collection[str] | None) -> None:
    """As `allowed`, of a command that may not be known any more. Raises Refused."""
    if scopes is not None and scope not in scopes:
        raise Refused(
            "not_allowed",
            f"{name} takes the scope {scope}",
            f"use a token that has it: holdfast tokens create NAME --scope {scope}",
        )


def may_ask(verb: Verb[Any], args: Struct, scopes: Collection[str] | None, *, near: bool) -> None:
    """The device may ask the place that these args name. Raises Refused.

    Else whoever reaches the broker could have it ask anybody in the network that it stands in.
    `near`: the order came by a local door; there a folder is for all who may order it, and any
    other place for an administrator.
    """
    place = verb.foreign(args) if verb.foreign else ""
    if not place or (near and (place.startswith(FOLDERS) or scopes is None or "admin" in scopes)):
        return
    who = "takes the scope admin" if near else "is for who stands before the device"
    raise Refused(
        "not_allowed",
        f"source: {quoted(place)} is none of updates.urls, and another one {who}",
        "leave source out, or add it to updates.urls; at the device: holdfast commands send",
    )


def expires_in_s(order: Order, now_s: float, *, exact: bool) -> float | None:
    """Until when it holds; None: for ever, or nobody can judge. Raises Refused where it is over.

    `exact`: it is `now_s` (UTC); else it is later than that, and what is not known to be
    over is not.
    """
    command = order.command
    issued = command.issued if order.by and exact else None
    if issued is not None and issued.timestamp() > now_s + AHEAD_S:
        raise Refused(
            "not_trusted",
            "the command was issued in the future, by this device's clock",
            "set the signer's clock",
        )
    if command.expires is None:
        return None
    left_s = command.expires.timestamp() - now_s
    if left_s <= 0:
        raise Refused(
            "too_old",
            f"the command expired at {command.expires:%Y-%m-%d %H:%M:%S %Z}",
            "send it again with a later expiry",
        )
    return left_s if exact else None

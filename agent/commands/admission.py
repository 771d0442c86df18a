"""Whether an order is taken: by what it says, who says it, and what the journal knows of its id."""

import hashlib
from collections.abc import Collection
from contextlib import suppress
from datetime import datetime
from typing import Any

import msgspec
from msgspec import Struct

from agent.commands import trust
from agent.commands.catalogue import Catalogue
from agent.commands.trust import Refused, Rules
from agent.commands.verb import Verb
from agent.errors import NotThere, RequestError
from agent.known_time import KnownTime
from agent.protocol.commands import COMMAND_BYTES_MAX, Command, Door, Order, too_deep
from agent.store.journal import Entry, Forgotten, IdTaken, Journal, JournalFull, New
from agent.words import quoted

FROM_AFAR: tuple[Door, ...] = ("mqtt", "twin", "plant")  # and nobody has looked who it was
LISTED = "`holdfast commands ls` lists them"
Scopes = Collection[str] | None


class Admission:
    """Takes orders into the journal, or says why not."""

    def __init__(
        self, journal: Journal, catalogue: Catalogue, rules: Rules, known: KnownTime
    ) -> None:
        self._journal = journal
        self._catalogue = catalogue
        self._rules = rules
        self._known = known

    async def admit(
        self, order: Order, door: Door, scopes: Scopes, reply: bytes | None
    ) -> tuple[Entry, bool]:
        """Its row, and whether it is new. Raises Refused, StoreError."""
        command = order.command
        trust.addressed(order, self._rules)
        if wrong := too_deep(command.args):
            raise Refused("bad_args", wrong, "say it with fewer levels")
        self._believe(order, self._verb(command.name), door)
        digest = _digest(order)
        if known := await self._journal.get(command.id):  # also one that is over by now
            if known.digest != digest:
                raise _taken(command.id, known.name)
            return known, False
        verb, args = self._allowed(command, door, scopes)
        if verb.about:
            await self._may_touch(verb.about(args), order, door, scopes)
        left_s = trust.expires_in_s(order, self._known.least_s(), exact=self._known.sure)
        new = New(
            id=command.id,
            digest=digest,
            name=command.name,
            args=_encoded(command),
            door=door,
            issuer=command.issuer,
            by=order.by,
            issued_us=_us(command.issued),
            expires_us=_us(command.expires),
            expires_in_s=left_s,
            reply=reply,
            about=verb.about is not None,
        )
        return await self._kept(new)

    def takes_from_plant(self, name: str) -> bool:
        """Whether the other systems of the site may order this."""
        try:
            trust.trusted(self._verb(name), self._rules)
        except Refused:
            return False
        return True

    def scope(self, name: str) -> str:
        """Who may order a command; one that is not known any more was for an administrator."""
        verb = self._verb(name)
        return verb.scope if verb else "admin"

    def _verb(self, name: str) -> Verb[Any] | None:
        with suppress(NotThere):
            return self._catalogue.verb(name)
        return None

    def _believe(self, order: Order, verb: Verb[Any] | None, door: Door) -> None:
        """Raises Refused."""
        if door == "plant":
            trust.trusted(verb, self._rules)
        elif door in FROM_AFAR:
            trust.believed(order, verb, self._rules, bound=door == "mqtt")

    def _allowed(self, command: Command, door: Door, scopes: Scopes) -> tuple[Verb[Any], Struct]:
        """The verb, and what it takes. Raises Refused."""
        try:
            verb = self._catalogue.verb(command.name)
            if not verb.about:
                trust.allowed(verb, scopes)
            args = self._catalogue.args(verb, command.args)
        except NotThere as error:
            raise Refused("unknown_command", str(error), error.hint) from error
        except RequestError as error:
            raise Refused("bad_args", str(error), error.hint) from error
        trust.may_ask(verb, args, scopes, near=door not in FROM_AFAR)
        return verb, args

    async def _may_touch(self, name: str, order: Order, door: Door, scopes: Scopes) -> None:
        """Whoever gave this order might have ordered that command too. Raises Refused, StoreError.

        There must be one: of a later one nobody could say who may.
        """
        entry = await self._journal.get(name)
        if entry is None:
            raise Refused("not_now", f"there is no command {quoted(name)}", LISTED)
        self._believe(order, self._verb(entry.name), door)
        trust.holds(entry.name, self.scope(entry.name), scopes)

    async def _kept(self, new: New) -> tuple[Entry, bool]:
        try:
            return await self._journal.accept(new)
        except IdTaken as error:
            raise _taken(new.id, str(error)) from error
        except Forgotten as error:
            raise Refused(
                "too_old",
                "it was issued before commands that this device has forgotten, and may have been "
                "carried out then",
                "give it a new id and order it again, if it was not",
            ) from error
        except JournalFull as error:
            raise Refused("full", str(error), error.hint) from error


def _encoded(command: Command) -> bytes:
    """Its args. Raises Refused."""
    args = msgspec.json.encode(command.args)
    if len(args) > COMMAND_BYTES_MAX:
        found = f"args of {len(args)} bytes; expected {COMMAND_BYTES_MAX} at most"
        raise Refused("bad_args", found, "send less")
    return args


def _digest(order: Order) -> bytes:
    """What tells two commands of one id apart."""
    command = order.command
    said = msgspec.json.encode([command.name, command.args], order="deterministic")
    return hashlib.sha256(said).digest()


def _taken(name: str, other: str) -> Refused:
    return Refused(
        "id_taken",
        f"{name!r} is the id of another command ({other})",
        "give each command an id of its own",
    )


def _us(instant: datetime | None) -> int | None:
    return None if instant is None else int(instant.timestamp() * 1e6)

"""Orders to the configuration: apply, roll back, confirm, and what there is.

A version bears the id of the order that has chosen it, and the book of versions is on the disk
before anything changes: an order that comes again after a crash finds what it has done there, so
nothing is done twice, and no step of its own is noted for that.

None of them waits in a lane: a rollback and a confirmation end the trial for which an apply waits,
and another apply is told at once that there is one.
"""

from typing import Annotated, Any, Literal

from msgspec import Meta, Struct

from agent.commands.verb import Call, IsOpen, NoArgs, Verb, not_ended
from agent.errors import HoldfastError, RequestError
from agent.protocol.commands import CommandId
from agent.versions.shown import ConfigApplied, ConfigShown, DocumentShown
from agent.versions.versions import Versions
from agent.versions.wish import CONFIRM_S, CONFIRM_S_MAX, Window, Wish

RESTART_S = 300.0  # which a trial may take longer than its time: two starts, that may hang
Words = Annotated[str, Meta(max_length=400)]


class ApplyArgs(Struct, frozen=True, forbid_unknown_fields=True):
    """A whole `document` (YAML), or a merge `patch` (RFC 7396) of the live one, without comments.

    `live`: only if this version is live. After `confirm_s` it is judged (`auto`), or taken back
    unless somebody has confirmed it (`manual`). `dry_run`: only say what would be done.
    """

    document: str | None = None
    patch: dict[str, Any] | None = None
    live: int | None = None
    confirm: Literal["auto", "manual"] = "auto"
    confirm_s: Window = CONFIRM_S
    dry_run: bool = False
    why: Words = ""


class RollbackArgs(Struct, frozen=True, forbid_unknown_fields=True):
    """To the version `number`; null: to the one before. `of`: only if the version is live that the
    command of this id has applied; then the one before that."""

    number: int | None = None
    of: CommandId | None = None
    why: Words = ""


class ConfirmArgs(Struct, frozen=True, forbid_unknown_fields=True):
    """Only if this version is live; null: whichever is."""

    number: int | None = None
    why: Words = ""


class ShowArgs(Struct, frozen=True, forbid_unknown_fields=True):
    """Which version; null: the live one."""

    number: int | None = None


class ConfigVerbs:
    """The verbs."""

    def __init__(self, versions: Versions, is_open: IsOpen) -> None:
        self._versions = versions
        self._is_open = is_open

    def verbs(self) -> list[Verb[Any]]:
        """What can be ordered."""
        timeout_s = CONFIRM_S_MAX + RESTART_S
        return [
            Verb(
                *("config.apply", "Have another configuration, on trial.", ApplyArgs, self._apply),
                *("admin", "", timeout_s, self._apply_again),
                grave=True,
            ),
            Verb(
                "config.rollback",
                "Have a former version of the configuration.",
                *(RollbackArgs, self._roll_back, "admin", "", RESTART_S, self._roll_back_again),
                grave=True,
            ),
            Verb(
                *("config.confirm", "The live version of the configuration stays.", ConfirmArgs),
                *(self._confirm, "admin"),
            ),
            Verb(
                *("config.versions", "The versions of the configuration.", NoArgs),
                *(self._list, "read"),
            ),
            Verb(
                *("config.show", "A version of the configuration as it is written.", ShowArgs),
                *(self._show, "admin"),
            ),
        ]

    async def _apply(self, args: ApplyArgs, call: Call) -> ConfigApplied:
        if (args.document is None) == (args.patch is None):
            raise RequestError("one of document and patch", 'as {"patch": {"log_level": "debug"}}')
        wish = Wish(
            document=None if args.document is None else args.document.encode(),
            patch=args.patch,
            live=args.live,
            confirm=args.confirm,
            confirm_s=args.confirm_s,
            order=call.id,
            who=call.who,
            why=args.why,
        )
        if args.dry_run:
            return await self._versions.plan(wish)
        return await self._end(await self._versions.apply(wish), call)

    async def _apply_again(self, args: ApplyArgs, call: Call) -> ConfigApplied:
        if not self._versions.knows(call.id):  # it was broken off before anything was done
            return await self._apply(args, call)
        return await self._told(call)

    async def _roll_back(self, args: RollbackArgs, call: Call) -> ConfigApplied:
        early = args.of is not None and await self._is_open(args.of)
        why = _why(call, args.why)
        done = await self._versions.roll_back(args.number, call.id, why, args.of or "")
        if early and done.state == "same":
            raise not_ended(args.of)
        return await self._end(done, call)

    async def _roll_back_again(self, args: RollbackArgs, call: Call) -> ConfigApplied:
        if not self._versions.knows(call.id):
            return await self._roll_back(args, call)
        return await self._told(call)

    async def _end(self, done: ConfigApplied, call: Call) -> ConfigApplied:
        if done.state == "same":
            return done
        changes = ", ".join(done.changed) or "nothing that is in force"
        await call.tell(0.5, f"version {done.number} is on trial; it changes {changes}")
        return await self._told(call)

    async def _told(self, call: Call) -> ConfigApplied:
        """What became of it. Raises HoldfastError where it was taken back."""
        done = await self._versions.outcome(call.id)
        if done.state == "taken_back":
            raise HoldfastError(
                f"version {done.number} was taken back: {done.why}", "mend it, and order it again"
            )
        return done

    async def _confirm(self, args: ConfirmArgs, call: Call) -> ConfigShown:
        return await self._versions.confirm(args.number, _why(call, args.why))

    async def _list(self, _: NoArgs, __: Call) -> ConfigShown:
        return self._versions.shown()

    async def _show(self, args: ShowArgs, _: Call) -> DocumentShown:
        return await self._versions.document(args.number)


def _why(call: Call, why: str) -> str:
    return f"ordered by {call.who}{f': {why}' if why else ''}"

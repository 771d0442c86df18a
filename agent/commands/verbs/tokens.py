"""Orders about API tokens. No secret travels: whoever orders a token made its text, and sends its
digest; the device never knows the text."""

from collections.abc import Awaitable, Callable
from typing import Annotated, Any

from msgspec import Meta, Struct

from agent.commands.verb import Call, NoArgs, Verb, again
from agent.forms import SCOPES, Scope

LANE = "tokens"


class NewToken(Struct, frozen=True, forbid_unknown_fields=True):
    """A token `hf_ID_SECRET`: its id (8 hex digits) and the SHA-256 of its secret (43 characters of
    URL-safe base64). One of the same name is replaced: so a token is rotated."""

    id: Annotated[str, Meta(pattern=r"^[0-9a-f]{8}$(?!\n)")]
    name: Annotated[str, Meta(min_length=1, max_length=64)]
    scopes: Annotated[list[Scope], Meta(min_length=1, max_length=len(SCOPES))]
    sha256: Annotated[str, Meta(pattern=r"^[0-9a-f]{64}$(?!\n)")]


class Which(Struct, frozen=True, forbid_unknown_fields=True):
    """The token's id."""

    id: Annotated[str, Meta(pattern=r"^[0-9a-f]{8}$(?!\n)")]


class TokenVerbs:
    """Each may be given again."""

    def __init__(
        self,
        show: Callable[[], Any],
        place: Callable[[str, str, list[Scope], str], Awaitable[Any]],
        revoke: Callable[[str], Awaitable[Any]],
        known: Callable[[str], Any],
    ) -> None:
        """`place` takes id, name, scopes and digest; `known` is None for an unknown id."""
        self._show = show
        self._place = place
        self._revoke = revoke
        self._known = known

    def verbs(self) -> list[Verb[Any]]:
        """What can be ordered."""
        return [
            again("token.list", "The tokens there are.", NoArgs, self._list, "admin"),
            again(
                "token.set",
                "Let in whoever shows this token, in place of one of its name.",
                NewToken,
                self._set,
                "admin",
                LANE,
                grave=True,
            ),
            again(
                "token.revoke",
                "Let in nobody with this token.",
                Which,
                self._take_back,
                "admin",
                LANE,
                grave=True,
            ),
        ]

    async def _list(self, _: NoArgs, __: Call) -> Any:
        return {"tokens": self._show()}

    async def _set(self, args: NewToken, _: Call) -> Any:
        await self._place(args.id, args.name, args.scopes, args.sha256)
        return {"tokens": self._show()}

    async def _take_back(self, args: Which, call: Call) -> Any:
        if not call.step or self._known(args.id) is not None:
            await call.note("begun")
            await self._revoke(args.id)
        return {"tokens": self._show()}

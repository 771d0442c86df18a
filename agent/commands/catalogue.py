"""All that can be ordered, by name, and what is known of each without ordering it."""

import difflib
from collections.abc import Iterable
from typing import Any

import msgspec
from msgspec import Struct

from agent.commands.verb import Verb
from agent.errors import NotThere, RequestError


class VerbShown(Struct, frozen=True):
    """A command of the catalogue: `args` is the JSON schema of what it takes."""

    name: str
    summary: str
    scope: str
    lane: str
    timeout_s: float
    grave: bool
    resumes: bool
    args: dict[str, Any]


class Catalogue:
    """The verbs, in alphabetical order."""

    def __init__(self, verbs: Iterable[Verb[Any]]) -> None:
        self._verbs = {verb.name: verb for verb in sorted(verbs, key=lambda verb: verb.name)}

    def verb(self, name: str) -> Verb[Any]:
        """The verb of this name. Raises NotThere, with the nearest that there is."""
        if verb := self._verbs.get(name):
            return verb
        near = difflib.get_close_matches(name, self._verbs, 1)
        hint = f"did you mean {near[0]}? " if near else ""
        raise NotThere(f"there is no command {name!r}", f"{hint}`holdfast commands help` lists all")

    def args(self, verb: Verb[Any], given: dict[str, Any]) -> Struct:
        """What the verb takes, from what came. Raises RequestError."""
        try:
            args: Struct = msgspec.convert(given, verb.args)
        except msgspec.ValidationError as error:
            said = str(error).replace("`$", "`args")
            key = said.rstrip("`").rpartition("`args.")[2]
            known = _schema(verb.args).get("properties", {}).get(key, {}).get("enum")
            raise RequestError(
                f"{verb.name}: {said[0].lower()}{said[1:]}",
                f"known: {', '.join(map(str, known))}"
                if known
                else f"see `holdfast commands help {verb.name}`",
            ) from error
        return args

    def shown(self) -> list[VerbShown]:
        """All of them."""
        return [
            VerbShown(
                *(verb.name, verb.summary, verb.scope, verb.lane, verb.timeout_s, verb.grave),
                resumes=verb.resume is not None,
                args=_schema(verb.args),
            )
            for verb in self._verbs.values()
        ]


def _schema(args: type[Struct]) -> dict[str, Any]:
    """The schema of a struct, its own form at the top."""
    whole = msgspec.json.schema(args)
    parts = whole.pop("$defs", {})
    own = parts.pop(args.__name__, {})
    return {**own, **({"$defs": parts} if parts else {})}

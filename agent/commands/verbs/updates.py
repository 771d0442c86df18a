"""Content of the fleet: what there is for this device, and fetching it (docs/updates.md).

Neither notes a step: a check changes nothing but what is believed, and a fetch that was broken off
goes on at the byte where the file on the disk ends.
"""

from typing import Annotated

from msgspec import Meta, Struct

from agent.commands.verb import Call, Verb
from agent.sections.updates import SOURCE
from agent.updates.content import Content, Offers
from agent.updates.fetched import Fetched

Named = Annotated[
    str,
    Meta(
        pattern=rf"^({SOURCE}|/[^\s]*)?$(?!\n)",
        description="as in updates.urls, or a folder as /media/stick/repository",
    ),
]
MARGIN_S = 60.0  # beyond what the settings allow, so that the refusal says what took so long


class Check(Struct, frozen=True, forbid_unknown_fields=True):
    """`source` is asked in place of those in `updates.urls`; from afar it must be one of them."""

    source: Named = ""


class Fetch(Struct, frozen=True, forbid_unknown_fields=True):
    """`target` is the path that `updates.check` tells; `source` as there."""

    target: Annotated[str, Meta(min_length=1, max_length=1000)]
    source: Named = ""


class UpdateVerbs:
    """The verbs `updates.check` and `updates.fetch`."""

    def __init__(self, content: Content, check_s_max: float, fetch_s_max: float) -> None:
        self._content = content
        self._check_s = check_s_max + MARGIN_S
        self._fetch_s = check_s_max + fetch_s_max + MARGIN_S

    def verbs(self) -> list[Verb[Check] | Verb[Fetch]]:
        """For the catalogue."""
        return [
            Verb(
                "updates.check",
                "What the fleet has signed for this device, and until when its word holds.",
                Check,
                self._check,
                lane="updates",
                timeout_s=self._check_s,
                resume=self._check,
                foreign=self._foreign,
            ),
            Verb(
                "updates.fetch",
                "Fetch one signed file, and keep it until it is installed.",
                Fetch,
                self._fetch,
                lane="updates",
                timeout_s=self._fetch_s,
                resume=self._fetch,
                foreign=self._foreign,
            ),
        ]

    def _foreign(self, args: Check | Fetch) -> str:
        return self._content.foreign(args.source)

    async def _check(self, args: Check, _: Call) -> Offers:
        return await self._content.check(args.source)

    async def _fetch(self, args: Fetch, call: Call) -> Fetched:
        return await self._content.fetch(args.target, call.tell, args.source)

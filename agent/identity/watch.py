"""Whether the device's certificate ends soon, while there is time to replace it."""

import asyncio

from agent.errors import NotThere
from agent.health.conditions import Conditions
from agent.health.names import Name
from agent.identity.pair import Pair, Shown
from agent.known_time import KnownTime, day
from agent.threads import apart

CONDITION: tuple[Name, str] = ("link_certificate", "link.cert_file")
ENDING_S = 30 * 86_400.0
LOOK_S = 300.0
_REMEDY = (
    "renew it from the fleet (certificate.request, certificate.install), or by stick: `holdfast "
    "provision request` (docs/identity.md)"
)


class Watch:
    """Judged by the least that is known of the time: what that finds at its end is so."""

    def __init__(self, pair: Pair, known: KnownTime, conditions: Conditions) -> None:
        self._pair = pair
        self._known = known
        self._conditions = conditions

    async def run(self) -> None:
        """Look every LOOK_S, for ever."""
        while True:
            await self.look()
            await asyncio.sleep(LOOK_S)

    async def look(self) -> None:
        """Look now."""
        try:
            found = await apart(self._pair.shown)
        except (OSError, NotThere):  # the link says so, with what to do
            self._conditions.clear(*CONDITION)
            return
        if said := self._judged(found):
            self._conditions.hold(*CONDITION, "warning", said, _REMEDY)
        else:
            self._conditions.clear(*CONDITION)

    def _judged(self, found: Shown) -> str:
        now_s, ends = self._known.least_s(), day(found.ends_s)
        if now_s > found.ends_s:
            return f"the device's certificate expired on {ends}; the time is {self._known.said()}"
        if found.ends_s - now_s < ENDING_S:
            return f"the device's certificate ends on {ends}; the time is {self._known.said()}"
        if self._known.sure and now_s < found.begins_s:
            begins = day(found.begins_s)
            return f"the device's certificate is valid only from {begins} on"
        return ""

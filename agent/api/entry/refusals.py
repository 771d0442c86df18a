"""What becomes of those who are not let in: an answer, and a line in the log; both are bounded.

An address may show FAILURES tokens that are not known, and then one each FAILURE_EACH_S; more are
told to wait. Those who show a good one are let in meanwhile: many may share an address, and 256
random bits are not found by trying. The log has LINES lines of it, and then one each LINE_EACH_S.
No line holds what was shown, or a path, in which somebody may have put it.
"""

import logging
import math

from aiohttp import web

from agent.api.entry.rates import Rate
from agent.api.entry.sessions import take_cookie
from agent.clock import Clock

log = logging.getLogger("api")
FAILURES, FAILURE_EACH_S = 10, 6.0
SERVER = "holdfast"  # else aiohttp tells everybody its version, and Python's
LINES, LINE_EACH_S = 20, 10.0


class Refusals:
    """Refuses."""

    def __init__(self, clock: Clock) -> None:
        self._failures = Rate(1 / FAILURE_EACH_S, FAILURES, clock)
        self._lines = Rate(1 / LINE_EACH_S, LINES, clock, keys_max=1)
        self._untold = 0

    def unknown_token(self, address: str, door: str) -> web.Response:
        """To somebody whose token is not known."""
        if wait_s := self._failures.take(address):
            return too_many(f"{address} has shown too many tokens that are not known", wait_s)
        self._tell(f"{address} showed a token that is not known, at {door}")
        return unauthorized(
            "this token is not known: it is mistyped, or was revoked",
            "see holdfast tokens ls, and make another: holdfast tokens create",
        )

    def ended(self, address: str, door: str, needed: str) -> web.Response:
        """To a browser whose session is over, where that is asked."""
        self._tell(f"{address} came with a session that has ended to {door}")
        answer = unauthorized(
            f"this session has ended, and {door} is for those who hold {needed}", "log in again"
        )
        take_cookie(answer)
        return answer

    def nobody(self, address: str, door: str, needed: str) -> web.Response:
        """To somebody who does not say who he is, where that is asked."""
        self._tell(f"{address} came without a token to {door}")
        return unauthorized(
            f"{door} is for those who hold {needed}",
            "send `Authorization: Bearer` with a token that has it (holdfast tokens)",
        )

    def unreadable(self, why: str) -> None:
        """Somebody sent what is no request."""
        self._tell(f"a request that cannot be read: {why}")

    def _tell(self, what: str) -> None:
        if self._lines.take(""):
            self._untold += 1
            return
        more = f"; {self._untold} more were refused" if self._untold else ""
        self._untold = 0
        log.warning("refused: %s%s", what, more)


def refusal(status: int, error: str, hint: str, retry_s: float | None = None) -> web.Response:
    """The form of every error answer; `retry_s` is when to try again, where somebody knows."""
    answer = web.json_response({"error": error, "hint": hint}, status=status)
    if retry_s is not None:
        answer.headers["Retry-After"] = str(max(1, math.ceil(retry_s)))
    return answer


def unauthorized(error: str, hint: str) -> web.Response:
    """401: who asks has to say who he is."""
    answer = refusal(401, error, hint)
    answer.headers["WWW-Authenticate"] = "Bearer"
    return answer


def too_many(error: str, wait_s: float) -> web.Response:
    """429, with the time until it is good again."""
    return refusal(429, error, f"try again in {max(1, math.ceil(wait_s))} s", wait_s)

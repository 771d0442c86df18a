"""Browser sessions: a token that was typed once becomes a cookie that no script can read.

A session may do what its token may, and ends with it. Sessions are kept in memory alone: after a
restart of the agent the token is typed again.

Limits: SESSIONS_MAX of each token; the one that was not used for longest makes room. IDLE_S without
a request, LIFE_S in all, both monotonic; one that follows a stream of events is not idle.
"""

import hashlib
import secrets
from collections.abc import Callable, Iterable

from aiohttp import web

from agent.api.entry.tokens import Token, Tokens
from agent.clock import Clock

COOKIE = "holdfast_session"
SESSIONS_MAX = 16  # the browsers of those who share a token
IDLE_S = 3600.0  # a page that is open asks all the time: this is one that was left
LIFE_S = 43_200.0  # a shift
SECRET_BYTES = 32


class Session:
    """One; `under_way` are the requests that came by it and are being answered."""

    def __init__(self, token: str, now_s: float) -> None:
        self.token = token
        self.ends_s = now_s + LIFE_S
        self.seen_s = now_s
        self.under_way = 0

    def over(self, now_s: float) -> bool:
        """Whether its time has passed."""
        idle = not self.under_way and now_s - self.seen_s >= IDLE_S
        return idle or now_s >= self.ends_s


class Sessions:
    """The sessions there are, by the SHA-256 of their cookie, so that looking is no comparing.

    Each of `ended` is called when one was logged out.
    """

    def __init__(
        self,
        tokens: Tokens,
        clock: Clock,
        random: Callable[[int], bytes] = secrets.token_bytes,
    ) -> None:
        self._tokens = tokens
        self._clock = clock
        self._random = random
        self._held: dict[bytes, Session] = {}
        self.ended: list[Callable[[], None]] = []
        tokens.changed.append(self._sweep)

    def begin(self, token: Token) -> str:
        """A new one; what its cookie says."""
        self._sweep()
        mine = [(one.seen_s, key) for key, one in self._held.items() if one.token == token.id]
        if len(mine) >= SESSIONS_MAX:
            self.end(self._held[min(mine)[1]])
        cookie = self._random(SECRET_BYTES).hex()
        self._held[_key(cookie)] = Session(token.id, self._clock.monotonic())
        return cookie

    def of(self, cookies: Iterable[str]) -> tuple[Session, Token] | None:
        """Who comes with these cookies, of which any may be ours: another port may set its own."""
        now_s = self._clock.monotonic()
        for cookie in cookies:
            session = self._held.get(_key(cookie))
            token = self._tokens.get(session.token) if session else None
            if session and token and not session.over(now_s):
                session.seen_s = now_s
                return session, token
        return None

    def alive(self, session: Session) -> bool:
        """Whether it has not ended."""
        return session in self._held.values() and not session.over(self._clock.monotonic())

    def left_s(self, session: Session) -> float:
        """How long it lasts at most."""
        return session.ends_s - self._clock.monotonic()

    def end(self, session: Session) -> None:
        """Log out."""
        self._held = {key: one for key, one in self._held.items() if one is not session}
        for callback in self.ended:
            callback()

    def _sweep(self) -> None:
        now_s = self._clock.monotonic()
        self._held = {
            key: one
            for key, one in self._held.items()
            if self._tokens.get(one.token) and not one.over(now_s)
        }


def take_cookie(answer: web.StreamResponse) -> None:
    """Have the browser forget it: it stands for nothing."""
    answer.del_cookie(COOKIE, path="/", httponly=True, samesite="Strict")


def _key(cookie: str) -> bytes:
    return hashlib.sha256(cookie.encode(errors="replace")).digest()

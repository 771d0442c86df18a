"""Who is being answered: whoever may no longer be loses his connection at once.

It is as if he had left, which every door can bear: a stream of events ends, a call is given up, and
what was accepted as durable stays.
"""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

from agent.api.entry.access import Access, Caller
from agent.clock import Clock


class Inside:
    """The requests under way of those who came by a token."""

    def __init__(self, access: Access, clock: Clock) -> None:
        self._access = access
        self._clock = clock
        # By the task that answers: the caller, and his connection.
        self._held: dict[object, tuple[Caller, asyncio.Transport | None]] = {}
        if access.tokens:
            access.tokens.changed.append(self.look)
        if access.sessions:
            access.sessions.ended.append(self.look)

    @contextmanager
    def stay(self, caller: Caller, transport: asyncio.Transport | None) -> Iterator[None]:
        """While his request is being answered; for no longer than his session lasts."""
        if not caller.token:
            yield
            return
        task, session = asyncio.current_task(), caller.session
        timer = None
        if session:
            session.under_way += 1
            if transport and (left_s := self._access.left_s(caller)) is not None:
                timer = asyncio.get_running_loop().call_later(max(left_s, 0.0), transport.abort)
        self._held[task] = caller, transport
        try:
            yield
        finally:
            del self._held[task]
            if timer:
                timer.cancel()
            if session:
                session.under_way -= 1
                session.seen_s = self._clock.monotonic()

    def look(self) -> None:
        """Send those away who may no longer be here; but who asked for it has his answer."""
        for task, (caller, transport) in list(self._held.items()):
            if transport and task is not asyncio.current_task() and not self._access.holds(caller):
                transport.abort()

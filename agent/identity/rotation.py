"""From one certificate to the next, over the link that it serves, and back if that link stays away.

    checked       nothing was changed
    former kept   the pair in use was copied beside itself
    switched      the new pair is in use, and on trial; the link begins anew with it
    kept          the link came up: the copy goes
    taken back    it did not within the window: the former pair is in use again

After each of them the file is a pair (pair.py). An agent that dies while a pair is on trial goes on
with the trial at its next start.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from agent.clock import Clock
from agent.errors import LinkError, NotNow
from agent.identity import checks
from agent.identity.pair import Pair, Shown, shown
from agent.known_time import KnownTime
from agent.sections.link import Link as Settings
from agent.threads import apart

WINDOW_S = 300.0
LOOK_S = 0.5
RETRY_S = 60.0
log = logging.getLogger("identity")


class Line(NamedTuple):
    """The link, as far as a certificate is concerned.

    `anew` ends the connection and has another one made; `why` says why there is none.
    """

    is_up: Callable[[], bool]
    anew: Callable[[], Awaitable[object]]
    why: Callable[[], str]


class Rotation:
    """One change at a time."""

    def __init__(
        self, settings: Settings, device: str, line: Line, known: KnownTime, clock: Clock
    ) -> None:
        """`settings` name the pair's file, if there is one."""
        self._settings = settings
        self._device = device
        self._line = line
        self._known = known
        self._clock = clock
        self._changing = asyncio.Lock()
        self._left = asyncio.Event()  # a trial, perhaps, that nobody sees to
        self._left.set()

    async def run(self) -> None:
        """See to trials that an end of the agent, or the disk, broke off, for ever."""
        if self._settings.cert_file is None or self._settings.key_file is not None:
            return
        while True:
            await self._left.wait()
            try:
                async with self._changing:
                    await self._tried(self._pair(), WINDOW_S)
            except OSError as error:
                log.warning("%s: %s: tried again", error.filename, error.strerror or error)
                await asyncio.sleep(RETRY_S)
            else:
                self._left.clear()

    async def request(self) -> str:
        """A certificate's request for a new key, in PEM. Raises NotNow."""
        async with self._changing:
            pair = self._pair()
            with _told():
                return await apart(lambda: pair.request(self._device))

    async def check(self, pem: bytes) -> None:
        """Whether `install` would take it; changes nothing. Raises RequestError, NotNow."""
        with _told():
            await apart(lambda: self._checked(self._pair(), pem))

    async def switch(self, pem: bytes) -> None:
        """Use this certificate from now on, on trial; it may be in use already.

        Raises RequestError and NotNow where nothing was changed.
        """
        async with self._changing:
            pair = self._pair()
            with _told():
                if await apart(lambda: self._switched(pair, pem)):
                    await self._line.anew()

    async def outcome(self, pem: bytes, window_s: float) -> Shown:
        """Wait for the end of the trial; the certificate that serves now.

        Raises LinkError once the former pair is in use again; NotNow where the disk does not let
        the trial end, which `run` then sees to.
        """
        async with self._changing:
            pair, found = self._pair(), checks.read(pem)[0]
            self._left.set()  # whatever ends this before its end
            with _told():
                why = await self._tried(pair, window_s)
                self._left.clear()
                if await apart(lambda: pair.is_of(found)):
                    return shown(found)
        raise LinkError(
            "the link did not come up with the new certificate"
            f"{f' in {window_s:g} s: {why}' if why else ''}; the former one is in use again",
            "see that the broker trusts its authority and allows this device, then send it again",
        )

    async def _tried(self, pair: Pair, window_s: float) -> str:
        """Wait for the end of the trial, if there is one; why the link did not come up."""
        if not await apart(lambda: pair.on_trial):
            return ""
        until_s = self._clock.monotonic() + window_s
        while not self._line.is_up():
            if self._clock.monotonic() > until_s:
                why = self._line.why()
                await apart(pair.take_back)
                await self._line.anew()
                return why or "no reason is known"
            await asyncio.sleep(LOOK_S)
        await apart(pair.keep)
        return ""

    def _switched(self, pair: Pair, pem: bytes) -> bool:
        """Whether it was not in use already."""
        if pair.is_of(checks.read(pem)[0]):
            return False
        if pair.on_trial:  # the disk did not let it end
            raise NotNow("another certificate is on trial", "wait until its trial is over")
        self._checked(pair, pem)
        pair.switch(pem, on_trial=True)
        return True

    def _checked(self, pair: Pair, pem: bytes) -> None:
        authorities = checks.authorities(self._settings.ca_file)
        checks.checked(pem, pair, self._device, authorities, self._known)

    def _pair(self) -> Pair:
        settings = self._settings
        if settings.cert_file is None:
            raise NotNow(
                "this device shows no certificate: link.cert_file is not set",
                "enrol it (docs/identity.md)",
            )
        if settings.key_file is not None:
            raise NotNow(
                "link.key_file: the key has a file of its own, and two files cannot be replaced "
                "in one instant",
                "put key and certificate into the file of link.cert_file, and take out "
                "link.key_file",
            )
        return Pair(Path(settings.cert_file))


@contextmanager
def _told() -> Iterator[None]:
    """What the disk refuses is told to whoever gave the order."""
    try:
        yield
    except OSError as error:
        raise NotNow(
            f"{error.filename or 'the disk'}: {error.strerror or error}",
            "the agent must be able to write into the folder of link.cert_file; look at its room "
            "and rights",
        ) from error

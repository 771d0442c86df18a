"""Answers to devices that would put a blob into the object store (protocol/grants.py).

Limits  : any ingest can answer any ask; while the store is away it is left alone for REST_S, and
          all who ask are refused meanwhile: a HEAD that hangs would hold up each of them.
Recovery: an object counts only once `noted` has committed that it was seen, and only then is a
          device told `stored`. Whatever breaks before that, the device asks again.
"""

import logging
from collections.abc import Awaitable, Callable

from agent.clock import Clock
from agent.errors import ProtocolError
from agent.protocol import grants
from agent.protocol.grants import Ask, Grant
from fleet.mqtt.s3 import EXPIRES_S_MAX, Bucket, BucketAway, BucketError

log = logging.getLogger("grants")
EXPIRES_S = 900
REST_S = 10.0
Noted = Callable[[str, Ask, str], Awaitable[bool]]


class Grants:
    """One ingest's answers; without a bucket, all are refused and blobs come in pieces."""

    def __init__(
        self,
        bucket: Bucket | None,
        noted: Noted,
        expires_s: int = EXPIRES_S,
        clock: Clock | None = None,
    ) -> None:
        """`noted(device, ask, place)` returns once the database holds that this blob lies there
        whole; False: it does not fit what else is known of it."""
        if not 1 <= expires_s <= EXPIRES_S_MAX:
            raise ValueError(f"a grant of {expires_s} s; expected 1 to {EXPIRES_S_MAX}")
        self._bucket = bucket
        self._noted = noted
        self._expires_s = expires_s
        self._clock = clock or Clock()
        self._fault, self._rests_until = "", 0.0  # monotonic

    async def answer(self, device: str, payload: bytes) -> bytes:
        """The grant to publish at the device's `blob-grant`. Raises ProtocolError for no ask."""
        ask = grants.decode_ask(payload)
        if not grants.fits_key(device):
            raise ProtocolError(f"an ask of {device!r}, which is no device's id")
        return grants.encode(await self._grant(device, ask))

    async def _grant(self, device: str, ask: Ask) -> Grant:
        if self._bucket is None:
            return _of(ask, refused="no object store is configured")
        if self._clock.monotonic() < self._rests_until:
            return _of(ask, refused=self._fault)
        try:
            place = self._bucket.url(device, ask.epoch, ask.stream, ask.seq)
            seen = await self._bucket.sees(place, ask.size, ask.sha256)
        except BucketError as error:
            log.warning("%s is sent back to pieces: %s; %s", device, error, error.hint)
            if isinstance(error, BucketAway):
                self._fault = str(error)
                self._rests_until = self._clock.monotonic() + REST_S
            return _of(ask, refused=str(error))
        if seen and not await self._noted(device, ask, place):
            return _of(ask, refused="the object is not what the record says of its blob")
        if seen:
            return _of(ask, stored=True)
        url, headers = self._bucket.grant(place, ask.sha256, self._expires_s)
        return _of(ask, url=url, headers=headers, expires_s=float(self._expires_s))


def _of(ask: Ask, **said: object) -> Grant:
    return Grant(epoch=ask.epoch, stream=ask.stream, seq=ask.seq, sha256=ask.sha256, **said)  # type: ignore[arg-type]

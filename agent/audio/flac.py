"""One stretch's FLAC, into the store while the stretch is still open: never in memory whole."""

import asyncio
import hashlib

from agent.audio.codec import Encoder, Pcm
from agent.store.blobs import CHUNK_BYTES_MAX, NONE
from agent.store.drafts import Draft, Drafted, Drafts


class Flac:
    """The FLAC of the stretch whose speech began at sample `begun`; its memory is some pieces."""

    def __init__(self, source: str, begun: int, drafts: Drafts) -> None:
        self.begun = begun
        self._drafts = drafts
        self._draft = Draft(source)
        self._encoder = Encoder(CHUNK_BYTES_MAX)

    async def push(self, pcm: Pcm) -> None:
        """The stretch's next sound. Raises StoreError."""
        content = await asyncio.to_thread(self._encoder.push, pcm)
        if content:
            self._draft = await self._drafts.extend(self._draft, content)

    async def finish(self, pcm: Pcm) -> tuple[bytes | Drafted, str]:
        """The stretch's last sound; the FLAC as `Spool.keep` takes it, and its sha256.

        What is in the store already is read back for the digest, which begins with the FLAC's
        first bytes, and those come last. Raises StoreError.
        """
        first, rest = await asyncio.to_thread(self._encoder.finish, pcm)
        if self._draft.blob == NONE:  # too short for a draft
            return first + rest, hashlib.sha256(first + rest).hexdigest()
        digest = hashlib.sha256(first)
        for number in range(1, self._draft.next):
            piece = await self._drafts.piece(self._draft, number)
            await asyncio.to_thread(digest.update, piece)
        digest.update(rest)
        return Drafted(self._draft, first, rest), digest.hexdigest()

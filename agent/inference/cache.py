"""Answers that are known already, of models that say they are deterministic.

Limits  : `bytes_max` for bodies and heads; the answer that was asked for longest ago goes first,
          and each goes after the time its model states (`cache_ttl_s`). Calls above CALL_BYTES_MAX
          are not looked up: their digest would hold up all others.
Format  : by the digest of the model version's label and the whole call.
Recovery: it is in memory alone.
"""

import hashlib
from collections import OrderedDict
from collections.abc import Sequence

from agent.inference.domains.work import Result
from agent.inference.wire import Buffer

CALL_BYTES_MAX = 4 << 20
ENTRY_BYTES = 500  # what an entry takes beside its answer, about


class Cache:
    """Bounded, least recently used."""

    def __init__(self, bytes_max: int) -> None:
        self.used_bytes = 0
        self._bytes_max = bytes_max
        self._entries: OrderedDict[bytes, tuple[float, Result]] = OrderedDict()

    @staticmethod
    def key(label: str, head: bytes, body: Sequence[Buffer]) -> bytes:
        """What stands for a call: collisions are not to be expected, nor to be made."""
        digest = hashlib.sha256(label.encode() + b"\0" + len(head).to_bytes(4, "big") + head)
        for piece in body:
            digest.update(piece)
        return digest.digest()

    def get(self, key: bytes, now_s: float) -> Result | None:
        """The answer, if it is there and not too old."""
        found = self._entries.get(key)
        if found is None or found[0] < now_s:
            return None
        self._entries.move_to_end(key)
        return found[1]

    def put(self, key: bytes, result: Result, until_s: float) -> None:
        """Keep an answer until then, or until there is no room for it."""
        size = _size(result)
        if size > self._bytes_max // 4:  # one that would push out nearly all others
            return
        if former := self._entries.pop(key, None):
            self.used_bytes -= _size(former[1])
        # Copies: what came from the socket may be a part of something larger.
        body = memoryview(bytes(result.body))
        self._entries[key] = (until_s, result._replace(head=result.head.copy(), body=body))
        self.used_bytes += size
        while self.used_bytes > self._bytes_max:
            _, (_, oldest) = self._entries.popitem(last=False)
            self.used_bytes -= _size(oldest)


def _size(result: Result) -> int:
    return ENTRY_BYTES + len(result.head) + len(result.body)

"""What every check answers with."""

from collections.abc import Iterable
from typing import Literal

from msgspec import Struct

Verdict = Literal["pass", "warn", "fail"]
Word = Literal["healthy", "degraded", "unhealthy"]
WORDS: dict[Verdict, Word] = {"pass": "healthy", "warn": "degraded", "fail": "unhealthy"}
GRAVITY: tuple[Word, ...] = ("healthy", "degraded", "unhealthy")


class Check(Struct, frozen=True):
    """One question of one thing: `name` is what was asked, `subject` of what; `remedy` is empty
    when it passed."""

    name: Literal["store", "reachable", "loaded", "inference", "compute", "queue", "memory"]
    subject: str
    verdict: Verdict
    found: str
    expected: str
    took_ms: float = 0.0
    remedy: str = ""


def gravest(words: Iterable[Word]) -> Word:
    """One word for all of them."""
    return max(words, key=GRAVITY.index, default="healthy")

"""What inventory.py shows of a store: the shapes of its answers."""

from typing import Any

from msgspec import Struct

from agent.records import Balance, Drop


class Stream(Struct, frozen=True):
    """One stream: its ledger, and how it stands.

    `settled`: up to there the far side knows all. `leased`: the last seq that is out (0: none is),
    and `leased_spans` in how many separate spans seqs are: what lies between them is not out.
    `sendable`: only up to there it may be sent (None: all). `dead`: dead letters among the held.
    `oldest_age_s` is of the oldest held record, in seconds of running time. `state` is that of
    what is held: waiting, leased, not to be sent, or empty.
    """

    epoch: str
    name: str
    produced: int
    delivered: int
    held: int
    dropped: dict[str, int]
    bytes: int
    bytes_max: int | None
    dead: int
    settled: int
    sendable: int | None
    leased: int
    leased_spans: int
    priority: int
    age_s_max: float | None
    oldest_seq: int | None
    oldest_age_s: float | None
    state: str


class Entry(Struct, frozen=True):
    """A held record without its body.

    `made_us` is its wall label. `state`: waiting, leased, not to be sent, dead, or retrying (a dead
    letter that is to be heard once more); `cause` is why it is dead.
    """

    seq: int
    type: str
    made_us: int
    age_s: float
    body_bytes: int
    blob_bytes: int
    state: str
    cause: str | None


class Page(Struct, frozen=True):
    """Held records of a stream and the dropped ranges among them that the far side does not know.

    `next` is the seq where the next page begins; None: there is no more.
    """

    epoch: str
    name: str
    records: list[Entry]
    dropped: list[Drop]
    next: int | None


class Whole(Struct, frozen=True):
    """A held record with its body; `fault` says why there is none."""

    epoch: str
    name: str
    record: Entry
    boot: str
    body: Any
    fault: str | None


class Account(Struct, frozen=True):
    """The ledger of a stream, and its first dropped ranges that the far side does not know yet.

    `ranges_next` is the seq from where on there are more of those (None: these are all).
    """

    balance: Balance
    settled: int
    ranges: list[Drop]
    ranges_next: int | None

"""The section `store`: what is kept, and what gives way."""

from typing import Annotated, Literal

from msgspec import Meta, field

from agent.forms import BYTES_MAX, Seconds
from agent.sections.part import Part


class StreamRule(Part, frozen=True, kw_only=True):
    """What holds for the streams that `match` (as a shell matches file names); the first counts.

    Of two streams the one of lower `priority` is given up first, and in it every `thin_every`-th
    record before the oldest (where records take a page or more, as those with audio do). Records
    older than `age_s_max` of running time are given up.

    `durability` is how safe a record is once it is accepted: `sync` in a commit of its own, `group`
    in a shared one, `volatile` in memory alone, for a while (see the store): a power cut may take
    it, and it is counted. A caller may ask for more. Sound is always `group`.
    """

    match: str
    priority: Annotated[int, Meta(ge=0, le=9)] = 5
    bytes_max: Annotated[int, Meta(ge=65_536, le=BYTES_MAX)] | None = None
    age_s_max: Seconds | None = None
    thin_every: Annotated[int, Meta(ge=2, le=1000)] | None = None
    durability: Literal["sync", "group", "volatile"] = "group"


class Store(Part, frozen=True):
    """The one SQLite file. What is held in it never takes more than `bytes_max`.

    Up to three files that were damaged may lie beside it.

    `when_full` says what gives way at a bound: `refuse` the new (files wait, live sound is counted
    as dropped), or `evict` the old, from `evict_at` of `bytes_max` on. Both stand in the ledger.
    `endurance_tb_written` is what the disk is specified for (terabytes of 10^12 bytes): when at the
    rate seen so far it lasts less than `life_years_min`, a condition says so.
    Volatile records are written `volatile_s` after they came, or when there are many: never more
    than `volatile_bytes_max` of them is in memory.
    Once in `scrub_s` all that is held is read, to find what the disk has damaged.
    """

    path: str = "var/holdfast.db"
    bytes_max: Annotated[int, Meta(ge=1024**2, le=BYTES_MAX)] = 2 * 1024**3
    when_full: Literal["refuse", "evict"] = "refuse"
    evict_at: Annotated[float, Meta(gt=0, le=1)] = 0.9
    volatile_s: Seconds = 2.0
    volatile_bytes_max: Annotated[int, Meta(ge=65_536, le=256 * 1024**2)] = 4 * 1024**2
    scrub_s: Seconds = 86_400.0
    streams: list[StreamRule] = field(default_factory=list)
    endurance_tb_written: Annotated[float, Meta(gt=0, le=1_000_000)] | None = None
    life_years_min: Annotated[float, Meta(gt=0, le=100)] = 5.0

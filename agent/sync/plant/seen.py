"""What the systems of the site see of the device: one look at all of it."""

from msgspec import Struct

from agent.health.conditions import Condition
from agent.records import Balance


class DomainSeen(Struct, frozen=True):
    """A domain. `ep` is the execution provider in use ("": none); `p95_ms` is of its last calls,
    from their arrival to their answer."""

    ready: bool
    ep: str
    p95_ms: float | None


class Seen(Struct, frozen=True, kw_only=True):
    """All of it; None: not known now. `ledger` is of all streams together.

    The temperatures are those of the hottest zone of the CPU, and of the hottest accelerator.
    `orders` are the commands that are taken from the site's systems.
    """

    status: str
    conditions: list[Condition]
    safe_mode: bool
    clock_trusted: bool
    connected: bool
    paused: bool
    backlog_records: int | None
    backlog_bytes: int | None
    ledger: Balance | None
    domains: dict[str, DomainSeen]
    cpu_c: float | None
    accelerator_c: float | None
    orders: frozenset[str]

    @property
    def problems(self) -> list[Condition]:
        """The conditions that somebody is to look at: no notes."""
        return [one for one in self.conditions if one.severity != "note"]

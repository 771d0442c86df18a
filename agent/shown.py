"""What the doors show of parts that stand beside them: forms that both sides know.

A part makes such a document, a door hands it on, and the OpenAPI document describes it. What is not
known is null. (Forms of parts that the doors see stand where they are made.)
"""

from typing import Literal, TypedDict


class LinkShown(TypedDict):
    """The connection to the cloud, and how it is made."""

    connected: bool
    broker: str
    embedded: bool
    fallback: bool
    protocol: Literal["5", "3.1.1"]
    ack_from: Literal["ingest", "broker"]
    connected_s: float | None
    down_s: float | None
    down_cause: str | None


class Rate(TypedDict):
    """Means over the last minute of being connected."""

    sent_bytes_per_s: float | None
    acknowledged_records_per_s: float | None
    acknowledged_bytes_per_s: float | None
    arriving_bytes_per_s: float | None


class Limit(TypedDict):
    """The rate that holds now (null: any), why, and for how long (null: no end is known)."""

    rate_bytes_per_s_max: int | None
    why: Literal["now", "order", "hours", "settings"]
    for_s: float | None


class Waiting(TypedDict):
    """What of a stream the far side has not acknowledged, its dead letters aside."""

    epoch: str
    name: str
    priority: int
    records: int
    bytes: int
    oldest_age_s: float | None


class Backlog(TypedDict):
    """What is to be sent, the most urgent stream first."""

    records: int
    bytes: int
    streams: list[Waiting]


class Quota(TypedDict):
    """The bytes of a day; `reached` is what it holds back now."""

    bytes_per_day: int
    used_bytes: int
    left_bytes: int | None
    reached: Literal["", "backlog", "all"]
    begins_anew_s: float


class Sync(LinkShown):
    """The link, its budget and the backlog."""

    last_ack_age_s: float | None
    paused: bool
    paused_for_s: float | None
    rate: Rate
    limit: Limit
    backlog: Backlog | None
    eta_s: float | None
    quota: Quota | None
    heartbeat_s: float
    sent_bytes: int
    acknowledged_records: int


class ExportState(TypedDict):
    """An export: what there is in all, how far it is, its last part and which is next."""

    export: str
    device: str
    part_bytes: int
    records: int
    size_bytes: int
    streams: int
    records_done: int
    size_bytes_done: int
    failure: str | None
    part: int | None
    part_digest: str | None
    part_next: int | None


class AckTaken(TypedDict):
    """What a bundle from the fleet changed: so many records are delivered, what was not believed,
    and what became of each command of a bundle of commands."""

    verdict: Literal["taken", "nothing_new", "contradiction"]
    export: str
    created: str
    by: str
    delivered: int
    refused: list[str]
    commands: list[dict[str, str]]

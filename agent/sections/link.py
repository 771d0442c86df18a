"""The sections `link` and `bundle`: the way to the cloud, and the one by stick."""

from typing import Annotated, Literal

from msgspec import Meta, field

from agent.forms import (
    BYTES_MAX,
    AgeRecipient,
    Broker,
    Payload,
    Prefix,
    PublicKey,
    Rate,
    Seconds,
    TimeOfDay,
)
from agent.sections.part import Part


class Hours(Part, frozen=True, kw_only=True):
    """From `begin` to `end` (local time, past midnight too) another byte rate holds; null: any."""

    begin: TimeOfDay
    end: TimeOfDay
    rate_bytes_per_s_max: Rate | None


class Link(Part, frozen=True, kw_only=True):
    """The way to the cloud. No `broker_url`: the embedded broker, for trying things out.

    When the broker cannot be reached, `fallback_urls` are tried in their order; from there the way
    back is tried each `prefer_s`. A call of a broker has twice `connect_timeout_s`, its name and
    all its addresses together, and each of its first answers has that once. `client_id` (none:
    holdfast- and the device's id) and `alpn` are for brokers that want them so. The password, which
    may be a token, is read anew for each connection; `cert_file` and `key_file` are the device's
    certificate; without `key_file` the key lies in `cert_file`, too, as its renewal by command
    wants it (docs/identity.md). While the device is away, the broker keeps commands for it for
    `session_s` (0: it keeps none; with MQTT 3.1.1 the broker alone knows how long).

    `ack_from` says whose acknowledgement lets the device purge: `ingest` (stored in the far
    database) or `broker` (taken by the broker). It never changes by itself. Up to
    `unacked_bytes_max` may be out without an ack, and up to `in_flight_max` messages. What is not
    acknowledged in `tries_max` tries is sent alone, and then kept as a dead letter.

    Blobs go in pieces over `mqtt`, or are `put` by HTTP where the cloud grants it, a URL for each;
    what it does not grant, or what fails so, goes in pieces.

    Records younger than `live_s` go before all that is older. A batch waits up to `batch_s` for
    more of its stream. Without an entry of `hours` for it, `rate_bytes_per_s_max` bounds what is
    sent in a second, and `quota_bytes_per_day` what is sent in a day; its last tenth is for live
    records alone.
    """

    ack_from: Literal["ingest", "broker"]
    broker_url: Broker | None = None
    fallback_urls: list[Broker] = field(default_factory=list)
    prefer_s: Seconds = 600.0
    client_id: str | None = None
    username: str | None = None
    password_file: str | None = None
    ca_file: str | None = None
    cert_file: str | None = None
    key_file: str | None = None
    alpn: str | None = None
    topic_prefix: Prefix = "holdfast/v1"
    keepalive_s: Annotated[int, Meta(ge=5, le=1200)] = 20
    session_s: Annotated[int, Meta(ge=0, le=31_536_000)] = 604_800
    connect_timeout_s: Seconds = 10.0
    backoff_s_min: Seconds = 6.0
    backoff_s_max: Seconds = 120.0
    heartbeat_s: Seconds = 5.0
    ack_timeout_s: Seconds = 30.0
    tries_max: Annotated[int, Meta(ge=2, le=100)] = 5
    unacked_bytes_max: Annotated[int, Meta(ge=65_536, le=BYTES_MAX)] = 8 * 1024**2
    in_flight_max: Annotated[int, Meta(ge=1, le=1000)] = 20
    blobs_by: Literal["mqtt", "put"] = "mqtt"
    live_s: Seconds = 30.0
    batch_s: Seconds = 0.1
    batch_records_max: Annotated[int, Meta(ge=1, le=10_000)] = 500
    payload_bytes_max: Payload = 131_072
    rate_bytes_per_s_max: Rate | None = None
    hours: list[Hours] = field(default_factory=list)
    quota_bytes_per_day: Annotated[int, Meta(ge=1024**2, le=BYTES_MAX)] | None = None


class Bundle(Part, frozen=True):
    """What crosses an air gap on a stick: signed with the key in `key_file`, made when it is not
    there, and encrypted for the age `recipients`, if there are any.

    An ack is believed when it is signed by one of `fleet_keys` (`holdfast-fleet bundle key`).
    """

    key_file: str = "var/device.key"
    recipients: list[AgeRecipient] = field(default_factory=list)
    fleet_keys: list[PublicKey] = field(default_factory=list)

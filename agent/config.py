"""The configuration: what can be set, within which limits, and what holds when it is not.

Every number's key ends in its unit. `config/schema.json` is generated from these classes
(`python -m agent.config`); `config_file.py` reads the file and explains mistakes.
"""

import re
import socket
import sys
from itertools import chain
from typing import Annotated, Literal

import msgspec
from msgspec import Meta, Struct, field
from msgspec.structs import replace

from agent.forms import (
    BYTES_MAX,
    SECONDS_MAX,
    Address,
    AgeRecipient,
    Broker,
    CpuSet,
    Device,
    DeviceId,
    Keep,
    ModelName,
    Name,
    Payload,
    Port,
    Portion,
    Prefix,
    PublicKey,
    Rate,
    Scope,
    Seconds,
    Share,
    TimeOfDay,
)


class Part(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A section of the file; an unknown key in it is an error."""


class Source(Part, frozen=True, kw_only=True, tag_field="kind"):
    """What all sources share. `keep: all` sends the raw audio too, beside the segments."""

    name: Name
    keep: Keep = "segments"


class File(Source, frozen=True, kw_only=True, tag="file"):
    """One recording, taken in once."""

    path: str


class Folder(Source, frozen=True, kw_only=True, tag="folder"):
    """Recordings that appear in a folder; each is moved to done/ or rejected/ below it.

    A file counts as complete when its size and time have not changed for `settle_s`.
    """

    path: str
    poll_s: Seconds = 1.0
    settle_s: Seconds = 2.0


class Loop(Source, frozen=True, kw_only=True, tag="loop"):
    """The recordings of a folder, played at the speed of real sound, again and again."""

    path: str


class Microphone(Source, frozen=True, kw_only=True, tag="microphone"):
    """An ALSA device, read by `arecord` (Debian: alsa-utils); `device` as `arecord -L` names it."""

    device: str = "default"
    rate_hz: Annotated[int, Meta(ge=8000, le=192_000)] = 48_000
    channels: Annotated[int, Meta(ge=1, le=8)] = 1
    retry_s: Seconds = 5.0


class Segments(Part, frozen=True):
    """When speech begins and ends.

    A segment opens at `open_probability`, ends after `hangover_s` below `close_probability`, is
    widened by `margin_s`, forgotten below `speech_s_min` of speech, and cut at `length_s_max`.
    """

    open_probability: Share = 0.6
    close_probability: Share = 0.4
    speech_s_min: Seconds = 0.2
    hangover_s: Seconds = 0.5
    margin_s: Seconds = 0.2
    length_s_max: Annotated[float, Meta(ge=1, le=300)] = 30.0


class Audio(Part, frozen=True):
    """Where sound comes from; `chunk_s` is how much of it waits at most before it is committed.

    It is heard in the domain `domain`; where `domains` has none of that name, it is one with the
    model `speech`, class realtime.
    """

    sources: list[File | Folder | Loop | Microphone] = field(default_factory=list)
    chunk_s: Annotated[float, Meta(ge=0.05, le=0.5)] = 0.5
    domain: Name = "audio"
    segments: Segments = field(default_factory=Segments)


class Instances(Part, frozen=True):
    """Processes that serve: `min` always, up to `max` while calls wait; `spare` more stand by."""

    min: Annotated[int, Meta(ge=1, le=64)] = 1
    max: Annotated[int, Meta(ge=1, le=64)] = 1
    spare: Annotated[int, Meta(ge=0, le=8)] = 0


class Domain(Part, frozen=True, kw_only=True):
    """One failure boundary: child processes, each with all `models` (of one engine), and limits.

    `engine` is what its models must be made for: `onnx` (tensors) or `speech` (sound); none: what
    they are made for. The domain that hears is always `speech`.

    Of two domains the one of the more urgent `class` goes first. `devices` are tried in their
    order. `cpus` is a CPU set as Linux writes it (0-3,6; none: all), `cpu_share` the part of the
    CPU time that is the domain's when all want it (none: by class), `threads` those of each
    instance (none: all CPUs but two, shared out, and no more than `cpus`). A child above
    `memory_bytes_max` is killed, it alone. `gpu_share` is the part of the GPU's time when all want
    it.

    Up to `queue_max` calls wait (none: 256, and 2048 for speech), none longer than
    `request_timeout_s`; more are refused at once. Up to `batch_max` rows go together (none: 10, and
    64 for speech), and wait for each other up to `batch_delay_ms_max` (none: not at all, and 10 for
    live speech). A child that does not answer within
    `call_timeout_s` is killed. Restarts wait from `restart_s_min`, doubling up to `restart_s_max`;
    after `quarantine_after` deaths in `quarantine_window_s` it rests for `quarantine_s`. After a
    swap of a model the former processes stand by for `keep_previous_s`, for a quick rollback.

    Where `devices` name an accelerator and the CPU, a model whose accelerator fails goes on in its
    twin on the CPU. `cpu_twin` says when that is made: `preloaded` stands by, `at_fault` is made
    then, `off`: there is none (none: preloaded for class realtime, else at_fault). Whether the
    accelerator works again is probed after `probe_s_min`, and, while it does not, after pauses that
    double up to `probe_s_max`; after `probes_min` probes in a row that pass it is used again.
    """

    models: Annotated[list[ModelName], Meta(min_length=1)]
    engine: Literal["onnx", "speech"] | None = None
    class_: Literal["realtime", "interactive", "batch"] = field(default="interactive", name="class")
    instances: Instances = field(default_factory=Instances)
    devices: Annotated[list[Device], Meta(min_length=1)] = field(default_factory=lambda: ["cpu"])
    cpus: CpuSet | None = None
    cpu_share: Portion | None = None
    memory_bytes_max: Annotated[int, Meta(ge=64 * 1024**2, le=BYTES_MAX)] | None = None
    threads: Annotated[int, Meta(ge=1, le=256)] | None = None
    gpu_memory_bytes_max: Annotated[int, Meta(ge=64 * 1024**2, le=BYTES_MAX)] | None = None
    gpu_share: Portion | None = None
    queue_max: Annotated[int, Meta(ge=1, le=65_536)] | None = None
    batch_max: Annotated[int, Meta(ge=1, le=4096)] | None = None
    batch_delay_ms_max: Annotated[float, Meta(ge=0, le=1000)] | None = None
    start_timeout_s: Seconds = 30.0
    call_timeout_s: Seconds = 10.0
    request_timeout_s: Seconds = 30.0
    restart_s_min: Seconds = 0.1
    restart_s_max: Seconds = 30.0
    quarantine_after: Annotated[int, Meta(ge=2, le=100_000)] = 10
    quarantine_window_s: Seconds = 600.0
    quarantine_s: Seconds = 300.0
    keep_previous_s: Annotated[float, Meta(ge=0, le=SECONDS_MAX)] = 300.0
    cpu_twin: Literal["preloaded", "at_fault", "off"] | None = None
    probe_s_min: Seconds = 30.0
    probe_s_max: Seconds = 3600.0
    probes_min: Annotated[int, Meta(ge=1, le=100)] = 2

    @property
    def cpu_twin_when(self) -> Literal["preloaded", "at_fault", "off"]:
        """When a twin on the CPU is made; `off`: never, for there is no need of it, or no leave."""
        if self.devices[0] == "cpu" or "cpu" not in self.devices:
            return "off"
        return self.cpu_twin or ("preloaded" if self.class_ == "realtime" else "at_fault")

    @property
    def cpu_numbers(self) -> frozenset[int]:
        """The CPUs of `cpus`; none where that is not set."""
        spans = [part.partition("-") for part in self.cpus.split(",")] if self.cpus else []
        each = (range(int(first), int(last or first) + 1) for first, _, last in spans)
        return frozenset(chain.from_iterable(each))


class Models(Part, frozen=True):
    """The model repository. With `signed_by` (Ed25519 keys) no model runs that none of them signed.

    Answers of models that say they are deterministic are kept, `cache_bytes_max` of them.
    """

    path: str = "models"
    signed_by: list[PublicKey] = field(default_factory=list)
    cache_bytes_max: Annotated[int, Meta(ge=0, le=BYTES_MAX)] = 16 * 1024**2


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


class Hours(Part, frozen=True, kw_only=True):
    """From `begin` to `end` (local time, past midnight too) another byte rate holds; null: any."""

    begin: TimeOfDay
    end: TimeOfDay
    rate_bytes_per_s_max: Rate | None


class Link(Part, frozen=True, kw_only=True):
    """The way to the cloud. No `broker_url`: the embedded broker, for trying things out.

    When the broker cannot be reached, `fallback_urls` are tried in their order; from there the way
    back is tried each `prefer_s`. `client_id` (none: holdfast- and the device's id) and `alpn` are
    for brokers that want them so. The password, which may be a token, is read anew for each
    connection; `cert_file` and `key_file` are the device's certificate.

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
    keepalive_s: Annotated[int, Meta(ge=5, le=1200)] = 30
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


class Jobs(Part, frozen=True):
    """Durable jobs, in the store: `jobs_max` of them, in `bytes_max` of its room.

    A result is kept until it is taken, `result_keep_s` of running time at most. Work that is lost
    with its process is begun again, `attempts_max` times in all.
    """

    jobs_max: Annotated[int, Meta(ge=1, le=100_000)] = 1000
    bytes_max: Annotated[int, Meta(ge=1024**2, le=BYTES_MAX)] = 256 * 1024**2
    result_keep_s: Seconds = 604_800.0
    attempts_max: Annotated[int, Meta(ge=1, le=100)] = 5


class Tls(Part, frozen=True, kw_only=True):
    """A certificate (PEM, with those between it and its root) and its key, which has no password.

    When the files change they are taken anew, open connections go on.
    """

    certificate_file: str
    key_file: str


class Api(Part, frozen=True):
    """The local doors. `hosts` are further names a client may put in `Host`, without port.

    `host` is the address the TCP port listens on; `0.0.0.0` (IPv4) and `::` (IPv6) are all of this
    machine. Beyond the loopback it listens only while there are a certificate in `tls` and a token;
    with `without_tls` tokens go over the network in the clear. At most `connections_max` are open.

    The unix socket is for this user and `group` (none: the group of the process).

    `loopback_scopes` are what a program on this machine may do over TCP without a token.
    `rate_per_s_max` is how many requests each token may send in a second, and each address without
    one, after a rest as many at once; null: any. It does not hold on this machine without a token.
    """

    host: Address = "127.0.0.1"
    port: Port = 8080
    tls: Tls | None = None
    without_tls: bool = False
    connections_max: Annotated[int, Meta(ge=4, le=65_536)] = 128
    socket: str = "var/holdfast.sock"
    group: str | None = None
    hosts: list[str] = field(default_factory=list)
    loopback_scopes: list[Scope] = field(default_factory=lambda: ["read", "infer"])
    rate_per_s_max: Annotated[float, Meta(ge=1, le=1_000_000)] | None = 1000.0


class Gpio(Part, frozen=True):
    """A GPIO line that resets this machine, or cuts its power, while it is active.

    `line` is its offset on the `chip`, as `gpioinfo` shows it; it is held for `hold_s`.
    """

    chip: Annotated[str, Meta(pattern="^/dev/", description="a device, as /dev/gpiochip0")]
    line: Annotated[int, Meta(ge=0, le=4095)]
    active: Literal["high", "low"] = "high"
    hold_s: Annotated[float, Meta(ge=0.01, le=60)] = 1.0


class Watchdog(Part, frozen=True):
    """Who resets this machine when the agent does not move: one owner of the hardware's watchdog.

    `systemd` feeds it where it is PID 1 (RuntimeWatchdogSec) and watches the agent by its unit;
    `agent` has the agent feed `device` itself, which then waits for `timeout_s`; `none`: nobody.

    `root_socket` is that of `holdfast-root`, which reboots and resets for the agent (none: nobody
    does). Before that, a reset is tried by the executables of the folder `reset_hooks`, by
    `reset_command` (a program and its words) and by `reset_gpio`; each has `reset_timeout_s`.
    `device` is also asked what reset the machine.

    After `resets_per_day_max` resets within a day of running, or `safe_mode_after` restarts by
    crashes within `safe_mode_window_s`, no model runs (safe mode) until `safe_mode_s` have gone
    well, doubling each time, or until somebody ends it.
    """

    owner: Literal["systemd", "agent", "none"] = "systemd"
    device: str = "/dev/watchdog0"
    timeout_s: Annotated[int, Meta(ge=10, le=3600)] = 90
    root_socket: str | None = None
    reset_hooks: str = "/etc/holdfast/reset.d"
    reset_command: Annotated[list[str], Meta(min_length=1, max_length=16)] | None = None
    reset_gpio: Gpio | None = None
    reset_timeout_s: Annotated[float, Meta(ge=0.1, le=60)] = 10.0
    resets_per_day_max: Annotated[int, Meta(ge=1, le=50)] = 6
    safe_mode_after: Annotated[int, Meta(ge=2, le=100)] = 5
    safe_mode_window_s: Seconds = 900.0
    safe_mode_s: Seconds = 21_600.0


class Config(Part, frozen=True, kw_only=True):
    """The whole file. Relative paths start at the working directory.

    `device_id` names this device to the cloud and must never change; none: the host name.
    """

    link: Link
    device_id: DeviceId | None = None
    store: Store = field(default_factory=Store)
    audio: Audio = field(default_factory=Audio)
    domains: dict[Name, Domain] = field(default_factory=dict)
    models: Models = field(default_factory=Models)
    jobs: Jobs = field(default_factory=Jobs)
    api: Api = field(default_factory=Api)
    bundle: Bundle = field(default_factory=Bundle)
    watchdog: Watchdog = field(default_factory=Watchdog)
    log_level: Literal["debug", "info", "warning", "error"] = "info"

    @property
    def domains_all(self) -> dict[str, Domain]:
        """The domains, with the one that hears."""
        hears = self.audio.domain
        hearing = self.domains.get(hears, Domain(models=["speech"], class_="realtime"))
        hearing = replace(hearing, engine=hearing.engine or "speech")
        return {hears: hearing} | {n: one for n, one in self.domains.items() if n != hears}

    @property
    def device(self) -> str:
        """The device's id, fit for a topic."""
        return self.device_id or re.sub(r"[^A-Za-z0-9_.-]", "-", socket.gethostname())[:64]


def schema() -> bytes:
    """The JSON schema of the file, as `config/schema.json` holds it."""
    return msgspec.json.format(msgspec.json.encode(msgspec.json.schema(Config)), indent=2) + b"\n"


if __name__ == "__main__":
    sys.stdout.buffer.write(schema())

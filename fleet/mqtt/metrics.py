"""What an ingest tells Prometheus. Nothing is labelled by device: there may be a million."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, start_http_server

from agent.errors import ConfigError

_COMMIT_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0)
_LAG_S = (0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)


class Metrics:
    """One process's; a registry of its own, so that tests may have many."""

    def __init__(self) -> None:
        registry = self._registry = CollectorRegistry()
        prefix = "holdfast_fleet_"
        self.messages = Counter(
            f"{prefix}messages", "Messages that came, by door.", ["door"], registry=registry
        )
        self.message_bytes = Counter(
            f"{prefix}message_bytes", "Their payloads.", ["door"], registry=registry
        )
        self.records = Counter(
            f"{prefix}records",
            "Records that came: new ones, and ones that were stored already.",
            ["state"],
            registry=registry,
        )
        self.blobs = Counter(f"{prefix}blobs", "Blobs that became whole.", registry=registry)
        self.refused = Counter(
            f"{prefix}refused",
            "Messages and records refused; the table has them.",
            registry=registry,
        )
        self.commit = Histogram(
            f"{prefix}commit_seconds",
            "From the first byte taken apart to the commit.",
            buckets=_COMMIT_S,
            registry=registry,
        )
        self.lag = Histogram(
            f"{prefix}live_lag_seconds",
            "Age of the last record of a live batch at its commit, by a synchronised clock.",
            buckets=_LAG_S,
            registry=registry,
        )
        self.acks = Counter(f"{prefix}acks", "Ack documents published.", registry=registry)
        self.acks_failed = Counter(
            f"{prefix}acks_failed", "Ack documents that the broker refused.", registry=registry
        )
        self.asks = Counter(
            f"{prefix}asks",
            "Asks where to put a blob: answered, failed, left out since too many wait.",
            ["answer"],
            registry=registry,
        )
        self.faults = Counter(
            f"{prefix}database_faults",
            "Transactions that failed and are tried again.",
            registry=registry,
        )
        self.left_out = Counter(
            f"{prefix}messages_left_out",
            "Messages with QoS 0 that came while too many waited.",
            registry=registry,
        )
        self.heartbeats_left_out = Counter(
            f"{prefix}heartbeats_left_out",
            "Too many at once to be kept, or not fit for the database.",
            registry=registry,
        )
        self._gauges(registry, prefix)

    def _gauges(self, registry: CollectorRegistry, prefix: str) -> None:
        self.connected = Gauge(f"{prefix}connected", "1 with a broker.", registry=registry)
        self.shared = Gauge(
            f"{prefix}shared",
            "1 where the broker shares the work between ingests.",
            registry=registry,
        )
        self.waiting = Gauge(f"{prefix}waiting", "Messages not committed yet.", registry=registry)
        self.devices = Gauge(
            f"{prefix}devices", "Devices in the database.", ["state"], registry=registry
        )
        self.gaps = Gauge(
            f"{prefix}gaps", "Missing ranges, and the seqs in them.", ["unit"], registry=registry
        )

    def serve(self, host: str, port: int) -> None:
        """Answer to scrapes, in a thread. Raises ConfigError."""
        try:
            start_http_server(port, host, self._registry)
        except (OSError, OverflowError) as error:
            raise ConfigError(
                f"--metrics-port {port} on {host} cannot be used: {error}", "choose another port"
            ) from error

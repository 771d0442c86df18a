"""What a controller tells Prometheus. Nothing is labelled by device."""

from prometheus_client import CollectorRegistry, Counter, Gauge, start_http_server

from agent.errors import ConfigError


class Metrics:
    """One process's; a registry of its own, so that tests may have many."""

    def __init__(self) -> None:
        registry = self._registry = CollectorRegistry()
        prefix = "holdfast_control_"
        self.published = Counter(
            f"{prefix}commands_published",
            "Commands that the broker took, repeats included.",
            registry=registry,
        )
        self.results = Counter(
            f"{prefix}results", "Results that came, by state.", ["state"], registry=registry
        )
        self.refused = Counter(
            f"{prefix}refused", "Messages that make no sense.", registry=registry
        )
        self.faults = Counter(
            f"{prefix}database_faults",
            "Transactions that failed and are tried again.",
            registry=registry,
        )
        self.asks = Counter(
            f"{prefix}content_asks", "Asks for content, by outcome.", ["outcome"], registry=registry
        )
        self.content = Counter(
            f"{prefix}content_bytes", "Content that the broker took.", registry=registry
        )
        self.connected = Gauge(f"{prefix}connected", "1 with a broker.", registry=registry)
        self.leads = Gauge(
            f"{prefix}leads",
            "1 for the controller that acts, 0 for one that stands by.",
            registry=registry,
        )

    def serve(self, host: str, port: int) -> None:
        """Answer to scrapes, in a thread. Raises ConfigError."""
        try:
            start_http_server(port, host, self._registry)
        except (OSError, OverflowError) as error:
            raise ConfigError(
                f"--metrics-port {port} on {host} cannot be used: {error}", "choose another port"
            ) from error

"""What tests of several folders share."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest

from agent import structs
from tests.fleet.cluster import Cluster

os.environ["ORT_DISABLE_TELEMETRY"] = "1"  # of tests that use ONNX Runtime themselves

# Compiled once, not in each of the hundreds of processes that tests start: half of their time.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False

# No test asserts a duration; outside of CI, hypothesis would.
hypothesis.settings.register_profile(
    "holdfast",
    deadline=None,
    max_examples=400 if os.environ.get("HOLDFAST_LONG") == "1" else 40,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.load_profile("holdfast")

# The files that take longest begin first, so that at the end no other process waits for one.
LONGEST = [
    *(
        "appliance/test_unit.py",
        "appliance/test_root.py",
        "test_install.py",
        "e2e/test_watchdog.py",
        "e2e/test_faults.py",
        "cli/test_run.py",
        "api/test_fuzz.py",
        "net/test_matrix.py",
        "cli/test_bundle.py",
        "e2e/test_config.py",
        "versions/test_killed.py",
    ),
    *("store/faults/test_crash_points.py", "sync/test_poison.py", "e2e/test_path.py"),
    *("e2e/test_stick.py", "api/test_attacks.py", "cli/test_sync.py", "fleet/test_ingest.py"),
    *("cli/test_outbox.py", "store/faults/test_lost_writes.py", "page/test_page.py"),
    *("cli/test_cli.py", "net/test_brokers_other.py", "audio/test_listener.py"),
    *("inference/test_poisoned.py", "api/test_audio_stream.py", "store/test_model.py"),
    *("api/test_health.py", "inference/test_domain.py", "sync/test_link.py"),
    *("store/faults/test_disk_full.py", "e2e/test_damage.py", "cli/test_domains.py"),
    *("updates/test_kills.py", "test_bad_input.py", "test_config_any.py"),
]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Sort the files; the order within one stays."""
    places = {Path(__file__).parent / name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(item.path, len(places)))
    structs.make_all()  # as the agent does: tests have threads, too


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """A real PostgreSQL."""
    made = Cluster()
    try:
        made.start()
        yield made
    finally:
        made.remove()

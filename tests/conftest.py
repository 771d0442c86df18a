"""What tests of several folders share."""

import os
from collections.abc import Iterator

import hypothesis
import pytest

from tests.fleet.cluster import Cluster

os.environ["ORT_DISABLE_TELEMETRY"] = "1"  # of tests that use ONNX Runtime themselves

# No test asserts a duration; outside of CI, hypothesis would.
hypothesis.settings.register_profile(
    "holdfast", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("holdfast")


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """A real PostgreSQL."""
    made = Cluster()
    try:
        made.start()
        yield made
    finally:
        made.remove()

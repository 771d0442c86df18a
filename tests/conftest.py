"""What tests of several folders share."""

from collections.abc import Iterator

import hypothesis
import pytest

from tests.fleet.cluster import Cluster

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

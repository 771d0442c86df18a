"""What tests of several folders share."""

from collections.abc import Iterator

import hypothesis
import pytest

from tests.fleet.cluster import Cluster

hypothesis.settings.register_profile("holdfast")  # no test asserts a duration
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

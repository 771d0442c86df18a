"""What tests of several folders share."""

from collections.abc import Iterator

import pytest

from tests.fleet.cluster import Cluster


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """A real PostgreSQL."""
    made = Cluster()
    try:
        made.start()
        yield made
    finally:
        made.remove()

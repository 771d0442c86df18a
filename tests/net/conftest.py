"""A real PostgreSQL for all tests of the matrix."""

from collections.abc import Iterator

import pytest

from tests.fleet.cluster import Cluster


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    made = Cluster()
    try:
        made.start()
        yield made
    finally:
        made.remove()

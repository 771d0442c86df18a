"""Both databases, each test with an empty one of its own."""

from pathlib import Path

import pytest

DATABASES = ("sqlite", "postgres")


@pytest.fixture(params=DATABASES)
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Of an empty database: once SQLite, once PostgreSQL."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/fleet.db"
    found: str = request.getfixturevalue("cluster").new()
    return found

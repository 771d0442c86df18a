"""Both databases, each test with an empty one of its own; and a clock that nobody has set."""

import subprocess
from pathlib import Path

import pytest

from tests.outside import program

DATABASES = ("sqlite", "postgres")


@pytest.fixture(params=DATABASES)
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Of an empty database: once SQLite, once PostgreSQL."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/fleet.db"
    found: str = request.getfixturevalue("cluster").new()
    return found


@pytest.fixture(scope="session")
def unset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What is loaded before an agent whose clock nobody has set (identity/unset.c)."""
    library = tmp_path_factory.mktemp("unset") / "unset.so"
    source = Path(__file__).parent / "identity" / "unset.c"
    compiler = program("cc", "gcc")
    command = [compiler, "-shared", "-fPIC", "-O2", "-o", str(library), str(source), "-ldl"]
    subprocess.run(command, check=True, capture_output=True)
    return library

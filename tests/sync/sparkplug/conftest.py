"""A SCADA host at a real broker."""

from collections.abc import Iterator

import pytest

from tests.outside import Mosquitto
from tests.sync.sparkplug.judge import Host


@pytest.fixture
def host(broker: Mosquitto) -> Iterator[Host]:
    found = Host(broker.port)
    yield found
    found.close()
    assert not found.faults, found.faults

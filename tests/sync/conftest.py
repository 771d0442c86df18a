"""A real broker, and who listens to it."""

from pathlib import Path

import pytest

from tests.outside import Mosquitto
from tests.sync.rig import Listener


@pytest.fixture
def broker(tmp_path: Path) -> Mosquitto:
    found = Mosquitto(tmp_path)
    found.start()
    yield found
    found.kill()


@pytest.fixture
def listener(broker: Mosquitto) -> Listener:
    found = Listener(broker.port)
    yield found
    found.stop()

"""A real broker, and who listens to it."""

from pathlib import Path

import pytest

from tests.listener import Listener
from tests.outside import Mosquitto


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

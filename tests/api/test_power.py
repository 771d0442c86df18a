"""What the door, the metrics and the status's line say of the power profile."""

import subprocess
from pathlib import Path
from typing import Any

import msgspec
import pytest
from msgspec.structs import replace
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from agent.api.metrics.accelerators import PowerMetrics
from agent.api.routes.accelerators import AcceleratorDoors
from agent.cli.accelerators_view import power
from agent.health.accelerators import AcceleratorsShown
from agent.health.power.power import PowerShown
from tests.api.served import Served
from tests.api.test_model_metrics import documented
from tests.outside import program

LOW = PowerShown("low", "it has reached 90 °C", 92.5, 0.35, 2, 2, ["pictures"])
NOTHING = PowerShown(None, "", None, None, None, None, [])


def text(shown: PowerShown) -> str:
    registry = CollectorRegistry()
    registry.register(PowerMetrics(lambda: shown))
    return generate_latest(registry).decode()


def document(shown: PowerShown) -> dict[str, Any]:
    found: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(shown))
    return found


def not_asked() -> AcceleratorsShown:
    raise AssertionError("it is another door's")


async def test_the_door_says_which_profile_and_why(tmp_path: Path) -> None:
    base = "http://localhost/api/v1/power"
    routes = AcceleratorDoors(not_asked, lambda: LOW).routes()
    async with Served(tmp_path, base, routes) as served:
        assert await served.ask("GET") == (200, document(LOW))
        assert (await served.ask("GET", "?x=1"))[0] == 400


def test_the_documentation_names_every_metric_with_its_labels() -> None:
    shown: dict[str, set[str]] = {}
    for family in text_string_to_metric_families(text(LOW)):
        shown.setdefault(family.name, set()).update(*(one.labels for one in family.samples))
    assert documented("docs/power.md") == shown


def test_what_the_board_does_not_say_has_no_line() -> None:
    lines = [one for one in text(NOTHING).splitlines() if not one.startswith("#")]
    assert lines == []


def test_prometheus_finds_nothing_to_mend() -> None:
    command = [program("promtool", "prometheus"), "check", "metrics"]
    said = subprocess.run(command, input=text(LOW), capture_output=True, text=True, check=False)
    assert (said.returncode, said.stdout, said.stderr) == (0, "", "")


@pytest.mark.parametrize(
    ("shown", "line"),
    [
        (LOW, ["profile low (it has reached 90 °C), battery 35%"]),
        (replace(LOW, why="", battery_left_ratio=None), ["profile low"]),
        (replace(NOTHING, battery_left_ratio=1.0), ["battery 100%"]),
        (NOTHING, []),
    ],
)
def test_the_status_has_a_line_where_there_is_something_to_say(
    shown: PowerShown, line: list[str]
) -> None:
    assert list(power(document(shown))) == line

"""What docs/controllers.md and docs/fleet.md say is so."""

import asyncio
import re
import subprocess
import sys
from pathlib import Path

from prometheus_client import CollectorRegistry

from fleet.control import words
from fleet.control.cli import ABORTED, NO_WORD, NOT_ALL, PAUSED
from fleet.control.metrics import Metrics
from tests.outside import DEADLINE_S, ROOT, Mosquitto, running
from tests.sim.commanded import Commanded, Crew

CONTROLLERS = (ROOT / "docs" / "controllers.md").read_text()
FLEET = (ROOT / "docs" / "fleet.md").read_text()


async def test_the_controller_of_the_page_gives_an_order_to_one_who_comes_late(
    tmp_path: Path,
) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", CONTROLLERS, re.DOTALL)
    broker = Mosquitto(tmp_path)
    code = code.replace('"broker.example"', f'"127.0.0.1", {broker.port}')
    script = tmp_path / "controller.py"
    script.write_text(code)
    device = Commanded("press-7", broker.url)
    with running(broker):
        await device.come()  # its session is there from now on
        await device.leave()
        process = await asyncio.to_thread(
            subprocess.Popen, [sys.executable, str(script)], stdout=subprocess.PIPE, text=True
        )
        try:
            async with Crew([device]):
                told, _ = await asyncio.to_thread(process.communicate, timeout=DEADLINE_S)
        finally:
            process.kill()
            process.wait()
    assert told.split() == ["accepted", "succeeded"]
    assert list(device.effects.values()) == [1]


def test_every_state_is_explained() -> None:
    for state in words.ALL:
        assert f"`{state}`" in FLEET, state


def test_exit_codes_and_metrics_are_those_of_the_code() -> None:
    assert (NOT_ALL, NO_WORD, PAUSED, ABORTED) == (10, 11, 12, 13)
    assert re.findall(r"^\| (\d[\d, ]*) \|", FLEET, re.MULTILINE) == (
        ["0", "1", "2", "10", "11", "12, 13", "73, 75", "78"]
    )
    registry: CollectorRegistry = Metrics()._registry
    for family in registry.collect():
        name = f"{family.name}_total" if family.type == "counter" else family.name
        assert f"`{name}" in FLEET, name

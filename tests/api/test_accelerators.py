"""What the doors, the metrics and the status's line say of the accelerators."""

import subprocess
from pathlib import Path
from typing import Any

import msgspec
import pytest
from msgspec.structs import replace
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from agent.api.metrics.accelerators import AcceleratorMetrics
from agent.api.routes.accelerators import AcceleratorDoors
from agent.cli.accelerators_view import lines
from agent.clock import Clock
from agent.health.accelerators import AcceleratorsShown, AcceleratorWatch
from agent.health.conditions import Conditions
from agent.health.power.power import PowerShown
from agent.host.accelerators.accelerator import Accelerators
from agent.host.accelerators.jetson import Jetson
from agent.host.accelerators.none import NoAccelerator
from tests.api.served import Served
from tests.api.test_model_metrics import documented
from tests.host.accelerators.boards import laid_out
from tests.host.accelerators.libnvml import GPU_IS_LOST, HW_THERMAL, Card, bound
from tests.outside import program


def not_asked() -> PowerShown:
    raise AssertionError("it is another door's")


async def watched(accelerators: Accelerators) -> AcceleratorWatch:
    clock = Clock()
    watch = AcceleratorWatch(accelerators, Conditions(clock), clock)
    await watch.look()
    return watch


def text(shown: AcceleratorsShown) -> str:
    registry = CollectorRegistry()
    registry.register(AcceleratorMetrics(lambda: shown))
    return generate_latest(registry).decode()


def samples(shown: AcceleratorsShown) -> dict[tuple[str, ...], float]:
    """By name and labels, without which accelerator it is."""
    return {
        (one.name.removeprefix("holdfast_accelerator_"), *list(one.labels.values())[1:]): one.value
        for family in text_string_to_metric_families(text(shown))
        for one in family.samples
    }


def document(shown: AcceleratorsShown) -> dict[str, Any]:
    found: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(shown))
    return found


@pytest.fixture
async def nano(tmp_path: Path) -> AcceleratorsShown:
    return (await watched(Jetson(laid_out("orin-nano", tmp_path)))).shown()


@pytest.fixture
async def card() -> AcceleratorsShown:
    """A hot one, whose process erred."""
    one = Card()
    one.reasons, one.xids = HW_THERMAL, [31, 31]
    with bound(one) as (_, nvml):
        return (await watched(nvml)).shown()


async def test_the_door_answers_with_the_last_reading_and_asks_nobody(tmp_path: Path) -> None:
    root = laid_out("orin-nano", tmp_path)
    watch = await watched(Jetson(root))
    (root / "sys/class/devfreq/17000000.gpu/device/load").write_text("1\n")
    base = "http://localhost/api/v1/accelerators"
    async with Served(tmp_path, base, AcceleratorDoors(watch.shown, not_asked).routes()) as served:
        status, found = await served.ask("GET")
        assert (status, found["backend"], found["cause"]) == (200, "jetson", None)
        (one,) = found["accelerators"]
        assert (one["id"], one["utilisation_ratio"], one["mode"]) == ("gpu", 0.734, "MAXN_SUPER")
        assert one["ecc_corrected_errors"] is None
        assert (await served.ask("GET", "?x=1"))[0] == 400


async def test_metrics_have_standard_units(nano: AcceleratorsShown) -> None:
    found = samples(nano)
    assert found["temperature_celsius",] == 54.531
    assert found["utilization_ratio",] == 0.734
    assert found["clock_hertz",] == 918e6
    assert found["power_watts",] == 11.356
    assert found["rail_watts", "VDD_SOC"] == 2.528
    assert found["energy_joules_total",] == 0.0
    assert found["memory_bytes",] == 7802088 * 1024
    names = {name for name, *_ in found}
    assert not names & {"ecc_errors_total", "xid_errors_total", "throttled"}, "it does not say"


async def test_a_card_has_its_errors_and_why_it_is_slowed(card: AcceleratorsShown) -> None:
    found = samples(card)
    assert found["present", "nvml", "NVIDIA RTX 4000 Ada Generation"] == 1
    assert found["throttled", "thermal"] == 1
    assert found["ecc_errors_total", "corrected"] == 7
    assert found["xid_errors_total", "31"] == 2


async def test_a_machine_without_one_has_no_lines() -> None:
    assert text((await watched(NoAccelerator())).shown()) == ""


async def test_the_documentation_names_every_metric_with_its_labels(
    nano: AcceleratorsShown, card: AcceleratorsShown
) -> None:
    shown: dict[str, set[str]] = {}
    for family in [
        *text_string_to_metric_families(text(nano)),
        *text_string_to_metric_families(text(card)),
    ]:
        name = f"{family.name}_total" if family.type == "counter" else family.name
        shown.setdefault(name, set()).update(*(one.labels for one in family.samples))
    assert documented("docs/accelerators.md") == shown


async def test_prometheus_finds_nothing_to_mend(card: AcceleratorsShown) -> None:
    command = [program("promtool", "prometheus"), "check", "metrics"]
    said = subprocess.run(command, input=text(card), capture_output=True, text=True, check=False)
    assert (said.returncode, said.stdout, said.stderr) == (0, "", "")


async def test_the_status_has_a_line_for_each(nano: AcceleratorsShown) -> None:
    assert list(lines(document(nano))) == [
        "NVIDIA Jetson Orin Nano Engineering Reference Developer Kit Super (gpu): 73% busy, "
        "2.9 GiB of 7.4 GiB used, 55 °C, 11.4 W, 918 MHz, mode MAXN_SUPER"
    ]
    hot = replace(nano.accelerators[0], throttled=("thermal",), temperature_c=None, mode=None)
    (line,) = lines(document(replace(nano, accelerators=[hot])))
    assert line.endswith("918 MHz, [yellow]slowed: thermal[/]")
    assert "°C" not in line


async def test_the_status_says_why_nobody_answers_and_not_what_was_before(
    nano: AcceleratorsShown,
) -> None:
    assert list(lines(document(replace(nano, cause="it [hangs]")))) == ["[red]it \\[hangs][/]"]


async def test_the_status_says_what_is_lost_missing_or_not_known_yet() -> None:
    with bound(Card()) as (library, nvml):
        watch = await watched(nvml)
        library.refuses = {"nvmlDeviceGetMemoryInfo": GPU_IS_LOST}
        await watch.look()
        (line,) = lines(document(watch.shown()))
        assert line.startswith("[red]NVIDIA RTX 4000 Ada Generation (0000:01:00.0): NVML: GPU is")
    assert list(lines(document(AcceleratorsShown("nvml", None, "NVML: no", [])))) == [
        "[red]NVML: no[/]"
    ]
    assert list(lines(document(AcceleratorsShown("nvml", None, None, [])))) == ["not read yet"]
    assert list(lines(document(AcceleratorsShown("none", 1.0, None, [])))) == ["none"]
    assert list(lines(None)) == [], "of a former version"

"""A model that fell from its GPU, as people and programs see it; the GPU is played."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.inference.domains.rig import put
from tests.inference.domains.test_twinned import GPU, Played
from tests.inference.test_poisoned import Site
from tests.outside import Checked, Device, holdfast, running, until

# A twin that dies again and again rests, and soon tries once more.
RULES = {
    **{"threads": 1, "devices": ["cuda", "cpu"], "class": "realtime"},
    **{"quarantine_after": 2, "quarantine_s": 1, "restart_s_max": 1},
}


@pytest.fixture
def gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Played:
    monkeypatch.setenv("PYTHONPATH", str(GPU))
    monkeypatch.setenv("PLAYED_GPU", str(tmp_path / "gpu.json"))
    return Played(tmp_path / "gpu.json")


@pytest.fixture
def site(tmp_path: Path, gpu: Played) -> Iterator[Site]:
    put(tmp_path / "models", 1, "m")
    settings = {"models": {"path": str(tmp_path / "models")}}
    device = Device(tmp_path, {**settings, "domains": {"d": {"models": ["m"], **RULES}}})
    with running(device):
        found = Site(device)
        until(lambda: shown(found)["cpu_twin"] == "ready", "a twin stands by")
        yield found


def shown(site: Site) -> dict[str, object]:
    found: dict[str, object] = site.device.status()["domains"]["d"]
    return found


def ep(site: Site) -> str:
    reply = site.ask("m", [2.0] * 4)
    assert (reply.status, reply.value) == (200, 2.0)
    found: str = reply.document["parameters"]["ep"]
    return found


def test_a_fall_is_said_with_its_cost_and_the_way_back(site: Site, gpu: Played) -> None:
    assert [ep(site) for _ in range(4)] == ["CUDAExecutionProvider"] * 4
    gpu.has(sticky=True, cpu_slow_s=1)  # more than a stalled machine adds to calls on the GPU
    assert [ep(site) for _ in range(2)] == ["CPUExecutionProvider"] * 2

    fall = shown(site)["fallen"]["m"]  # type: ignore[index]
    assert fall["fault"] == "sticky"
    assert fall["cost_ratio"] > 2
    assert (fall["passes"], fall["passes_min"], fall["refusal"]) == (0, 2, "")
    assert 0 < fall["probe_s"] <= 30
    held = {one["name"]: one for one in site.device.status()["conditions"]}["device_fallback"]
    assert held["subject"] == "d/m"
    assert "runs on CPUExecutionProvider for a fault of its accelerator (sticky)" in held["cause"]
    assert "CUDA failure 700: an illegal memory access" in held["cause"]
    config = ("--config", str(site.device.config))
    listed = holdfast("domains", "ls", *config).stdout
    assert "! d/m: on the CPU for" in listed
    assert "0 of 2 probes passed" in " ".join(listed.split())

    gpu.is_well()
    Checked(site.device.socket, 60).post("/api/v1/domains/d/restart", None)
    until(lambda: not shown(site)["fallen"], "it is back at once")
    assert ep(site) == "CUDAExecutionProvider"
    names = [one["name"] for one in site.device.status()["conditions"]]
    assert "device_fallback" not in names


def test_that_nothing_would_take_over_is_a_condition(site: Site, gpu: Played) -> None:
    def said() -> str:
        held = {one["name"]: one["cause"] for one in site.device.status()["conditions"]}
        return str(held.get("cpu_twin_down", ""))

    gpu.has(cpu_broken=True)
    Checked(site.device.socket, 60).post("/api/v1/domains/d/restart", None)
    until(lambda: "SIGSEGV" in said(), "it is said")
    until(lambda: site.device.status()["domains"]["d"]["ready"], "the GPU serves all the same")
    assert ep(site) == "CUDAExecutionProvider"
    gpu.is_well()
    until(lambda: not said(), "it stands by again")

"""That what the accelerators say reaches whoever uses them."""

from pathlib import Path

import pytest

from agent import config_file
from agent.app import App
from agent.clock import Clock
from agent.compose import health
from agent.health.accelerators import AcceleratorWatch
from agent.health.conditions import Conditions
from agent.inference.domains.domains import Domains
from tests.host.accelerators.libnvml import Card, bound
from tests.inference.domains.test_twinned import CPU, CUDA, Load, Played, one
from tests.inference.domains.test_twinned import gpu as gpu

SLOW = {"probe_s_min": 60.0, "probe_s_max": 60.0}


async def test_a_lost_card_sends_models_to_the_cpu_before_a_call_has_met_it(
    tmp_path: Path, gpu: Played
) -> None:
    clock = Clock()
    async with one(tmp_path, class_="realtime", **SLOW) as (rig, d):
        load = Load(rig)
        await load.more(CUDA)
        with bound(Card()) as (library, nvml):
            parts = (nvml, Conditions(clock), clock)
            watch = AcceleratorWatch(*parts, leave=rig.domains.fell)
            library.cards[0].reasons = 0x40  # heat
            await watch.look()
            assert not d.falls
            library.cards[0].xids = [79]
            await watch.look()
        await load.more(CPU)
        await load.end()
        assert (d.falls["m"].fault, d.ladder.count) == ("off_the_bus", {"off_the_bus": 1})
        assert d.falls["m"].cause == "NVIDIA RTX 4000 Ada Generation: Xid 79"


async def test_the_agent_has_its_domains_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, told = tmp_path / "config.yaml", list[str]()
    file.write_text(f"link: {{ack_from: broker}}\nstore: {{path: {tmp_path}/holdfast.db}}\n")
    monkeypatch.setattr(Domains, "fell", lambda _, fault, __: told.append(fault))
    card = Card()
    card.xids = [109]
    with bound(card) as (_, nvml):
        monkeypatch.setattr(health, "found", lambda: nvml)
        app = App(config_file.load(file), file)
        await app.health.accelerators.look()
    assert told == ["hang"]

"""A whole agent that a SCADA host and Home Assistant see."""

from pathlib import Path
from typing import Any

import yaml

from tests.outside import Device, Mosquitto, running, until
from tests.sync.sparkplug.judge import Host
from tests.sync.sparkplug.rig import GROUP
from tests.sync.sparkplug.tahu import command
from tests.sync.test_home_assistant import House

NAME = "device-under-test"
SPARKPLUG = {"group_id": GROUP, "edge_node_id": "dev", "sample_s": 0.1}


def configure(device: Device, **changes: Any) -> None:
    """None: no such section."""
    whole = {**yaml.safe_load(device.config.read_text()), **changes}
    device.config.write_text(yaml.safe_dump({k: v for k, v in whole.items() if v is not None}))


def names(device: Device) -> set[str]:
    return {one["name"] for one in device.status()["conditions"]}


def test_others_see_it_give_orders_and_forget_it_when_they_are_told_to(tmp_path: Path) -> None:
    broker = Mosquitto(tmp_path)
    link = {"broker_url": broker.url, "ack_from": "broker", "backoff_s_min": 0.05}
    device = Device(tmp_path, {"link": link, "sparkplug": SPARKPLUG})
    home = {"sample_s": 0.1, "discovery_prefix": "first"}
    configure(device, home_assistant=home)
    with running(broker):
        host, house = Host(broker.port), House(broker.port)
        shown = lambda prefix: house.read(f"{prefix}/device/holdfast_{NAME}/config")  # noqa: E731
        with running(device):
            until(lambda: host.births, "the birth")
            until(lambda: host.values.get("Domains/audio/Ready"), "the domain is ready")
            status = device.status()
            assert host.values["Properties/Device"] == NAME
            assert (
                host.values["Domains/audio/Execution Provider"] == status["domains"]["audio"]["ep"]
            )
            assert host.values["Link/Connected"] == status["link"]["connected"]
            until(lambda: "domain_audio" in shown("first").get("components", {}), "the entities")
            state = f"holdfast/v1/{NAME}/home_assistant/state"
            until(lambda: house.read(state).get("domain_audio") == "ON", "its state")
            assert "Node Control/Restart" not in host.values, "it would be refused: not signed"
            assert {"sync_now"} == {"sync_now", "restart"} & shown("first")["components"].keys()
            host.command(command(("Health/Status", "fine")))
            until(lambda: "order_refused" in names(device), "what is no order")
            assert device.stop() == 0
            until(lambda: not host.online, "its death")
        orders = {"from_plant": ["device.restart"]}
        configure(device, home_assistant={**home, "discovery_prefix": "second"}, commands=orders)
        with running(device):
            until(lambda: host.online, "the next birth")
            assert host.values["bdSeq"] == 1
            assert host.values["Node Control/Restart"] is False
            assert "Node Control/Reboot" not in host.values
            until(lambda: shown("second") and not shown("first"), "the entities have moved")
            assert house.lies[f"holdfast/v1/{NAME}/home_assistant/availability"] == b"online"
            assert "restart" in shown("second")["components"]
            host.command(command(("Node Control/Restart", True)))
            until(lambda: len(host.births) == 3, "it was begun anew")
            until(lambda: device.status()["link"]["connected"], "it serves")
            assert device.stop() == 0
        configure(device, home_assistant=None, sparkplug=None)
        with running(device):
            until(lambda: not any(p for t, p in house.lies.items() if "home_ass" in t), "no state")
            until(lambda: not shown("second"), "no entities")
            until(lambda: not list(device.store.parent.glob("home_assistant*")), "it is forgotten")
            assert not names(device) & {"home_assistant_down", "sparkplug_down"}
            assert device.stop() == 0
        host.close()
        house.stop()
    assert not host.faults
    assert len(host.births) == 3

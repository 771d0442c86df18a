"""The entities, as the discovery of Home Assistant wants them, and their state.

One device-based discovery payload (Home Assistant 2024.11 and later):
https://www.home-assistant.io/integrations/mqtt/#device-discovery-payload
"""

import hashlib
import re
from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

from agent import VERSION
from agent.health.conditions import Condition
from agent.sync.plant import orders
from agent.sync.plant.seen import Seen

PRESS = b"PRESS"
BUTTONS = {"restart": orders.RESTART, "sync_now": orders.NOW}
CONDITIONS_MAX = 20  # in the attributes: Home Assistant keeps each change of them
# Which conditions make a problem of its own, by how their names begin.
PROBLEMS: dict[str, tuple[str, tuple[str, ...]]] = {
    "problem_store": ("Store", ("store_", "flash_", "snapshot_")),
    "problem_models": ("Models", ("domain_", "device_", "cpu_twin_", "version_", "accelerator_")),
    "problem_sound": ("Sound", ("source_", "sound_", "hearing_")),
    "problem_records": ("Records", ("dead_letters", "held_back", "ack_", "quota_")),
}
Component = dict[str, Any]


def object_id(device: str) -> str:
    """The device's name where no dot may be; two devices never share one."""
    plain = re.sub(r"[^A-Za-z0-9_-]", "_", device)
    if plain == device:
        return f"holdfast_{plain}"
    return f"holdfast_{plain}_{hashlib.sha256(device.encode()).hexdigest()[:8]}"


class Topics(NamedTuple):
    """What lies retained at the broker."""

    discovery: str
    state: str
    problems: str
    availability: str


def topics_of(prefix: str, device: str, root: str) -> Topics:
    """`prefix` is that of the discovery, `root` where the device's topics begin."""
    own = (f"{root}/{name}" for name in ("state", "problems", "availability"))
    return Topics(f"{prefix}/device/{object_id(device)}/config", *own)


def components(seen: Seen, root: str, had: Collection[str]) -> dict[str, Component]:
    """Those of this device, by their ids, as it is now; `root` is where its topics begin.

    A temperature that nobody has read yet is among them where it is one of those it `had`.
    """
    found = {
        "status": _sensor("Status", options=["healthy", "degraded", "unhealthy"]),
        "problems": _sensor("Problems", state_class="measurement"),
        "backlog_records": _sensor("Backlog", unit="records", state_class="measurement"),
        "backlog_bytes": _sensor("Backlog size", unit="B", device_class="data_size"),
        "held_records": _sensor("Records held", unit="records", state_class="measurement"),
        "dropped_records": _sensor("Records dropped", unit="records"),
        "problem": _flag("Problem", "problem") | {"json_attributes_topic": f"{root}/problems"},
        "link": _flag("Link", "connectivity"),
        "safe_mode": _flag("Safe mode", "problem"),
        **{key: _flag(f"{name} problem", "problem") for key, (name, _) in PROBLEMS.items()},
        **{_ready(name): _flag(f"Domain {name}", "running") for name in sorted(seen.domains)},
    }
    buttons = {
        "restart": _button("Restart the agent", f"{root}/restart") | {"device_class": "restart"},
        "sync_now": _button("Sync now", f"{root}/sync_now"),
    }
    found |= {key: one for key, one in buttons.items() if BUTTONS[key] in seen.orders}
    temperatures = {"cpu_c": "CPU temperature", "accelerator_c": "Accelerator temperature"}
    for key, name in temperatures.items():
        if key in had or getattr(seen, key) is not None:
            found[key] = _sensor(
                name, unit="°C", device_class="temperature", state_class="measurement"
            )
    for key, one in found.items():
        if one["platform"] != "button":
            one["value_template"] = f"{{{{ value_json['{key}'] }}}}"
    return found


def discovery(
    device: str, name: str, made: Mapping[str, Component], gone: Mapping[str, str], root: str
) -> dict[str, Any]:
    """The discovery payload. `gone` are the components to be removed, with their platforms."""
    own = object_id(device)
    each = {key: one | {"unique_id": f"{own}_{key}"} for key, one in made.items()}
    return {
        "device": {
            "identifiers": [own],
            "name": name,
            "manufacturer": "Holdfast",
            "model": "Edge agent",
            "sw_version": VERSION,
        },
        "origin": {"name": "holdfast", "sw_version": VERSION},
        "state_topic": f"{root}/state",
        "availability_topic": f"{root}/availability",
        "qos": 1,
        "components": each | {key: {"platform": platform} for key, platform in gone.items()},
    }


def state(seen: Seen) -> dict[str, Any]:
    """The values of all components; null, which the templates write as None, is `unknown`."""
    ledger, problems = seen.ledger, seen.problems
    return {
        "status": seen.status,
        "problems": len(problems),
        "backlog_records": seen.backlog_records,
        "backlog_bytes": seen.backlog_bytes,
        "held_records": ledger.held if ledger else None,
        "dropped_records": sum(ledger.dropped.values()) if ledger else None,
        "problem": _on(bool(problems)),
        "link": _on(seen.connected),
        "safe_mode": _on(seen.safe_mode),
        **{
            key: _on(any(one.name.startswith(begins) for one in problems))
            for key, (_, begins) in PROBLEMS.items()
        },
        **{_ready(name): _on(one.ready) for name, one in sorted(seen.domains.items())},
        "cpu_c": _halves(seen.cpu_c),
        "accelerator_c": _halves(seen.accelerator_c),
    }


def attributes(found: list[Condition]) -> dict[str, Any]:
    """The conditions in words, the gravest first."""
    told = found[:CONDITIONS_MAX]
    return {f"{one.name} {one.subject}": f"{one.cause}; {one.remedy}" for one in told}


def _sensor(name: str, *, unit: str | None = None, **more: Any) -> Component:
    made = {"platform": "sensor", "name": name, **more}
    if unit:
        made["unit_of_measurement"] = unit
    if "options" in more:
        made["device_class"] = "enum"
    return made


def _flag(name: str, device_class: str) -> Component:
    return {"platform": "binary_sensor", "name": name, "device_class": device_class}


def _button(name: str, topic: str) -> Component:
    return {"platform": "button", "name": name, "command_topic": topic, "payload_press": "PRESS"}


def _ready(domain: str) -> str:
    return f"domain_{domain}"


def _on(value: bool) -> str:
    return "ON" if value else "OFF"


def _halves(value: float | None) -> float | None:
    """To half a degree: each change is kept over there."""
    return None if value is None else round(value * 2) / 2

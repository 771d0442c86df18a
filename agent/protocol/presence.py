"""What the cloud sees of the device: presence (retained; last will) and heartbeat."""

from typing import Any

from msgspec import Struct

from agent.records import Balance


class Presence(Struct, frozen=True, kw_only=True):
    """Birth and death. The broker says `online: false` for a device that went without a word."""

    device: str
    online: bool
    epoch: str
    version: str
    ack_from: str


class Heartbeat(Struct, frozen=True, kw_only=True):
    """How the device is, every few seconds: status, conditions and the whole ledger.

    `ledger` is by epoch, then by stream: `epoch` is the one that grows, others were saved from
    store files that were damaged. A stream of which nothing is held may be left out, once it is not
    used any more; what was told of it last still holds.

    `start` is why the agent began: `power`, `watchdog`, `crash`, `hung`, `ordered`, `unknown`; in
    `safe_mode` no model runs.
    """

    device: str
    epoch: str
    uptime_s: float
    status: str
    conditions: list[dict[str, Any]]
    ledger: dict[str, dict[str, Balance]]
    start: str = ""
    safe_mode: bool = False

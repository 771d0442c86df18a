"""A whole agent with something of everything, whose every door may be knocked at."""

import shutil
from pathlib import Path
from typing import Any

from tests.cli.inbox import inbox
from tests.inference.domains.rig import put
from tests.outside import DEADLINE_S, ROOT, Checked, Device, until
from tests.sync.bundles import FLEET

TENSOR = {"name": "x", "shape": [1, 4], "datatype": "FP32", "data": [1, 2, 3, 4]}


class Scratch(Device):
    """Models `m` (versions 1 and 2) and `other` in domain `d`, a folder source `inbox`.

    Loopback may do all.
    """

    def __init__(self, folder: Path, **settings: Any) -> None:
        root = folder / "models"
        put(root, 1)
        put(root, 2)
        put(root, 1, "other")
        shutil.copytree(ROOT / "models/speech", root / "speech")
        whole = {
            **inbox(folder, keep="all"),
            "models": {"path": str(root)},
            "domains": {"d": {"models": ["m", "other"], "restart_s_min": 0.01}},
            "bundle": {"key_file": str(folder / "device.key"), "fleet_keys": [FLEET.public]},
            "api": {
                "port": 0,
                "socket": str(folder / "holdfast.sock"),
                "loopback_scopes": ["read", "infer", "operate", "admin"],
            },
            **settings,
        }
        super().__init__(folder, whole)

    def status(self) -> dict[str, Any]:
        """As Device has it, with the patience that a busy machine needs."""
        return Checked(self.socket, DEADLINE_S).get("/api/v1/status")

    def settle(self) -> None:
        """Wait until its domains are ready, and a recording was heard."""
        shutil.copy(next((ROOT / "samples").rglob("*.flac")), self.folder / "inbox")
        until(lambda: all(d["ready"] for d in self.status()["domains"].values()), "all are ready")
        until(lambda: self.ledger("inbox.segments")["held"] > 0, "a segment is held")
        until(lambda: self.ledger("inbox.raw")["held"] > 0, "raw audio is held")

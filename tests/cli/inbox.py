"""Agents with one folder source."""

from pathlib import Path
from typing import Any

from tests.outside import Device


def heard(device: Device) -> bool:
    """Whether the domain is ready and all that came was heard."""
    return device.status()["domains"]["audio"]["ready"] and device.ledger("inbox.raw")["held"] == 0


def inbox(folder: Path, keep: str = "segments") -> dict[str, Any]:
    """Settings with one folder source that looks often."""
    (folder / "inbox").mkdir()
    source = {"kind": "folder", "name": "inbox", "path": str(folder / "inbox"), "keep": keep}
    return {"audio": {"sources": [{**source, "poll_s": 0.05, "settle_s": 0.05}]}}

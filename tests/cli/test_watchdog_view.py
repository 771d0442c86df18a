"""How `holdfast watchdog status` shows the machine's own watchdog, in a line."""

from typing import Any

import pytest

from agent.cli.watchdog_view import hardware

FOUND: dict[str, Any] = {
    **{"identity": "i6300ESB timer", "armed": True, "timeout_s": 60, "timeout_s_max": 2046},
    **{"time_left_s": None, "pretimeout_s": None, "nowayout": False, "causes": []},
}


@pytest.mark.parametrize(
    ("found", "line"),
    [
        (None, "/dev/watchdog0: this machine has no watchdog of its own"),
        (
            FOUND,
            "/dev/watchdog0 (i6300ESB timer): armed, owner systemd, waits for 60 s, at most 2046 s",
        ),
        (
            {**FOUND, "armed": False, "timeout_s_max": None, "identity": "a [red]"},
            r"/dev/watchdog0 (a \[red]): [yellow]not armed[/], owner systemd, waits for 60 s",
        ),
        (
            {**FOUND, "time_left_s": 12, "pretimeout_s": 5, "nowayout": True, "causes": ["fan"]},
            "/dev/watchdog0 (i6300ESB timer): armed, owner systemd, waits for 60 s, left 12 s, "
            "pretimeout 5 s, at most 2046 s, cannot be disarmed, reset this machine: fan",
        ),
    ],
)
def test_each_thing_that_is_known_is_told(found: dict[str, Any] | None, line: str) -> None:
    assert hardware({"owner": "systemd", "device": "/dev/watchdog0", "found": found}) == line

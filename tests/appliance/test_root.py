"""The units of agent and root daemon together, under a real systemd: an agent without rights has
the machine rebooted (played by a file of the test)."""

import os
from pathlib import Path

import msgspec
import yaml

from agent.clock import Clock
from agent.health.watchdog.budgets import Kept
from agent.health.watchdog.policy import Taken
from tests.appliance.native import booted
from tests.appliance.test_unit import LONG_S, SERVICE, Unit
from tests.host.lowly import NOBODY
from tests.host.root.played import HARMLESS, prepare
from tests.outside import HOLDFAST, ROOT, Checked, hang, until

UNITS = ROOT / "provisioning" / "systemd"
DAEMON, SOCKET = "holdfast-root.service", "holdfast-root.socket"
# The agent's user. Python and the test may lie in folders that are root's: a right to go through
# those is all that it has more, and has only from the first program (env) on.
LOWLY = """
[Service]
User=nobody
Group=nogroup
AmbientCapabilities=CAP_DAC_READ_SEARCH
ExecStart=
ExecStart=/usr/bin/env {command} run --config {config}
"""
# PrivateTmp and PrivateDevices need a /tmp that can be written to.
HERE = {
    SOCKET: "[Socket]\nSocketGroup=nogroup\n",
    DAEMON: """
[Service]
ExecStart=
ExecStart={python} -P -m {harmless} {folder} --user nobody
Environment=PYTHONPATH={root}
PrivateTmp=no
PrivateDevices=no
ProtectHome=no
ReadWritePaths={folder}
""",
}


class Rooted(Unit):
    """Both, with what the daemon would do to the machine played by files."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.machine = folder / "machine"  # of root, who has no rights there but an owner's
        self.machine.mkdir()
        prepare(self.machine)
        watchdog = {"root_socket": "/run/holdfast-root.sock"}
        self.config.write_text(yaml.safe_dump({**self.settings, "watchdog": watchdog}))
        (self.native.units / f"{SERVICE}.d" / "lowly.conf").write_text(
            LOWLY.format(command=HOLDFAST, config=self.config)
        )
        python = HOLDFAST.with_name("python")
        here = {"python": python, "harmless": HARMLESS, "folder": self.machine, "root": ROOT}
        for name, text in HERE.items():
            (self.native.units / name).write_text((UNITS / name).read_text())
            dropped = self.native.units / f"{name}.d"
            dropped.mkdir()
            (dropped / "here.conf").write_text(text.format(**here))
        self._restarted_twice(folder / "var")
        os.chown(folder, NOBODY, NOBODY)
        for above in (folder, *folder.parents):  # pytest's own: others may pass, and see nothing
            if not above.stat().st_mode & 0o001:
                above.chmod(above.stat().st_mode | 0o011)

    def _restarted_twice(self, folder: Path) -> None:
        """For its store, as the agent remembers it: what is due next is the reboot."""
        folder.mkdir()
        clock, taken = Clock(), [Taken("agent", 10.0), Taken("agent", 20.0)]
        kept = Kept(clock.boot, clock.monotonic(), 30.0, {"store": taken})
        (folder / "ladder.json").write_bytes(msgspec.json.encode(kept))
        for path in (folder, folder / "ladder.json"):
            os.chown(path, NOBODY, NOBODY)


def test_an_agent_without_rights_has_the_machine_rebooted(tmp_path: Path) -> None:
    made = Rooted(tmp_path)
    with booted(made.native, SERVICE):
        until(made.up, "it is up and feeds systemd", LONG_S)
        (hook,) = Checked(made.socket).get("/api/v1/watchdog/resets")["hooks"]
        assert (
            hook["would"] == f"would write s, u, b to {made.machine}/sysrq, by the root daemon"
        ), hook
        uids = Path(f"/proc/{made.pid()}/status").read_text().partition("Uid:")[2].split()
        assert uids[:2] == [str(NOBODY)] * 2
        said = until(lambda: status_text(made), "systemd knows how it is", LONG_S)
        assert "link_down" in said
        hang(made.socket, "store")
        called = made.machine / "called"
        until(called.exists, "the machine is rebooted", LONG_S)
        assert called.read_text() == f"{made.machine}/program reboot\n"
        assert (made.machine / "sysrq").read_text() == ""


def status_text(made: Unit) -> str:
    """What `systemctl status` shows, once there is something to say."""
    said = made.native.shown(SERVICE, "StatusText").get("StatusText", "")
    return said if "link_down" in said else ""

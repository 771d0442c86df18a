"""Commands and agents that file rights hold for, also where the tests run as root."""

import os
import subprocess

from tests.outside import DEADLINE_S, HOLDFAST, Device, program, until


def without_privileges() -> list[str]:
    """What goes before a command: root without its capabilities owns files and no more."""
    if os.geteuid() != 0:
        return []
    return [program("setpriv", "util-linux"), "--bounding-set=-all", "--inh-caps=-all"]


def holdfast_unprivileged(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the command to its end."""
    return subprocess.run(
        [*without_privileges(), str(HOLDFAST), *arguments],
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
    )


class UnprivilegedDevice(Device):
    """An agent that file rights hold for."""

    def start(self) -> None:
        """Start it and wait until it answers."""
        command = [*without_privileges(), str(HOLDFAST), "run", "--config", str(self.config)]
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log)
        until(lambda: self.dead() or self.answers(), "the agent answers")
        assert not self.dead(), self.log.read_text()

"""The machine as it stands in the field: hung, reset, cut from its power, with a disk that is gone.

What a real board has and an emulated one has not (flash, brown-out, the limits of its watchdog) is
not shown here. docs/appliance.md has the results.
"""

from collections.abc import Iterator

import pytest

from tests.appliance.conftest import Tell
from tests.appliance.data import data_image
from tests.appliance.image.build import Image
from tests.appliance.machine import Machine, powered

pytestmark = pytest.mark.appliance

HANG_S = 180.0  # until somebody has noticed: 60 s at most, on a machine that is slow
SOON = "systemd.watchdog_sec=15"  # the hardware's watchdog, as systemd is told to set it
# A panic that nobody sees to; and a PID 1 that stands still, as one does that has crashed.
HANGS = {"panic of the kernel": "echo c >/proc/sysrq-trigger", "PID 1 dead": "kill -SEGV 1"}
CAUSES = """
from pathlib import Path
from agent.host.wdt import HardwareWatchdog
found = HardwareWatchdog(Path("/dev/watchdog0")).found()
print(found.identity, found.timeout_s, *found.causes)
"""


@pytest.fixture(scope="module")
def standing(image: Image, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    """One machine for all that it survives without losing its power."""
    folder = tmp_path_factory.mktemp("standing")
    machine = Machine(image, folder, str(data_image(image, folder)))
    machine.arguments += f" {SOON}"
    with powered(machine):
        yield machine


def test_it_boots_and_systemd_feeds_the_hardware(standing: Machine, told: Tell) -> None:
    standing.up()
    told("power on", "the agent answers, and is fed")
    assert standing.order("cat /proc/1/comm; stat -fc %T /sys/fs/cgroup") == "systemd\ncgroup2fs"
    assert standing.order("readlink /opt/holdfast/venv") == "slots/a", "as install.sh leaves it"
    identity, rest = standing.python(CAUSES).rsplit(maxsplit=1)
    assert (identity, rest) == ("i6300ESB timer", "15"), "no cause: it was the power"
    busy = CAUSES.replace(
        "print(", "import sys; HardwareWatchdog(Path('/dev/watchdog0')).arm(30); print("
    )
    with pytest.raises(ValueError, match="fed by somebody else"):
        standing.python(busy)


def test_the_agents_loop_hangs(standing: Machine, told: Tell) -> None:
    """The agent ends itself, and says where it stood still."""
    standing.up()
    told.begins()
    before = standing.starts
    standing.ask("POST", "/api/v1/watchdog/test", {"part": "loop"})
    standing.begun(before)
    standing.up()
    events = standing.ask("GET", "/api/v1/watchdog/history")["events"]
    assert events[0]["event"]["part"] == "agent"
    stacks = standing.order("cat /var/lib/holdfast/data/hung.last.txt")
    assert "_hang_here" in stacks
    told(
        "the agent's loop hangs",
        "it ends itself, systemd starts it again; hung.last.txt says where",
    )


def test_the_agent_is_stopped(standing: Machine, told: Tell) -> None:
    """Who cannot run cannot end itself: systemd does."""
    standing.up()
    told.begins()
    before = standing.starts
    standing.order("kill -STOP $(systemctl show -P MainPID holdfast.service)")
    standing.begun(before)
    standing.up()
    assert standing.why()["cause"] == "crash"
    assert "holdfast.service: Watchdog timeout (limit 30s)!" in standing.said()
    told("the agent is stopped (SIGSTOP)", "systemd ends it by WatchdogSec and starts it again")


@pytest.mark.parametrize("hang", HANGS)
def test_the_machine_hangs(standing: Machine, told: Tell, hang: str) -> None:
    """Nobody feeds the hardware any more: it resets the machine, and the cause can be read."""
    standing.up()
    told.begins()
    resets, starts = standing.happened("WATCHDOG"), standing.starts
    standing.shout(HANGS[hang])
    standing.reset(resets, HANG_S)
    told(hang, "QEMU tells of WATCHDOG: reset")
    standing.begun(starts)
    standing.up()
    assert standing.why()["cause"] == "watchdog"
    assert standing.python(CAUSES) == "i6300ESB timer 15 watchdog"
    told(hang, "the agent is back; the boot status says `watchdog`")

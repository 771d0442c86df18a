"""`python -m tests.host.root.harmless FOLDER [OPTIONS]`: holdfast-root that does no harm.

Files of the folder stand for /proc/sysrq-trigger, the reboot and nvpmodel.
"""

import sys
from pathlib import Path

from agent.host.root import acts
from agent.host.root.acts import Ways
from agent.host.root.command import main


def ways_of(folder: Path) -> Ways:
    """Nothing of this machine."""
    program = str(folder / "program")
    ways = ((program, "reboot"), (program, "-m"), (program, "slots"), (program, "build"))
    return Ways(folder / "sysrq", *ways)


if __name__ == "__main__":
    acts.PROGRAM_S_MAX = 1.0
    acts.SYSRQ = tuple((letter, 0.01) for letter, _ in acts.SYSRQ)  # type: ignore[assignment]
    sys.exit(main(ways_of(Path(sys.argv[1])), sys.argv[2:]))

"""`python -m tests.updates.rooted FOLDER [OPTIONS]`: holdfast-root for the slots of FOLDER/opt.

What it would do to the machine itself are files of the folder, as in tests/host/root.
"""

import sys
from pathlib import Path

from agent.host.root.command import main
from tests.host.root.harmless import ways_of
from tests.updates.rig import SCRIPT

if __name__ == "__main__":
    folder = Path(sys.argv[1])
    slots = (str(SCRIPT), "--tell", "/usr/bin/systemctl", str(folder / "opt"))
    build = ("/usr/bin/systemctl", "--no-block", "start", "holdfast-build.service")
    sys.exit(main(ways_of(folder)._replace(slots=slots, build=build), sys.argv[2:]))

"""`python -m agent.host.root`, as `holdfast-root`."""

import sys

from agent.host.root.command import main

if __name__ == "__main__":
    sys.exit(main())

"""`holdfast run`: the one command that is the agent (`python -m agent.cli.run CONFIG`)."""

import sys
from pathlib import Path

from agent import app, config_file, logs
from agent.errors import HoldfastError


def main(path: str) -> int:
    """Run the agent on this configuration until a signal ends it; the exit code."""
    try:
        settings = config_file.load(Path(path))
        logs.begin(settings.log_level)
        app.run(settings)
    except HoldfastError as error:
        return error.told()
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))

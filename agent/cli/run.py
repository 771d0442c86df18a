"""`holdfast run`: the one command that is the agent."""

from pathlib import Path

from agent import app, config_file, logs


def run_agent(path: Path) -> None:
    """Run the agent on this configuration until a signal ends it."""
    settings = config_file.load(path)
    logs.begin(settings.log_level)
    app.run(settings)

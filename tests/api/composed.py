"""The OpenAPI document of a whole agent: `python -m tests.api.composed > docs/openapi.json`."""

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from agent import config_file
from agent.app import App

COMMAND = "python -m tests.api.composed > docs/openapi.json"


def document() -> dict[str, Any]:
    """What an agent with the settings that ship would serve; none is started."""
    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder) / "config.yaml"
        store = f"{{path: {folder}/store/holdfast.db}}"
        config.write_text(f"link: {{ack_from: broker}}\nstore: {store}\n")
        found: dict[str, Any] = App(config_file.load(config), config).doors.server.document()
    return found


def text() -> str:
    """As the file has it."""
    return json.dumps(document(), indent=1) + "\n"


if __name__ == "__main__":
    sys.stdout.write(text())

"""`python -I -m agent.selftest CONFIG`: whether this version could run here.

Asked by the version that runs, of the one in the other slot, before it is switched to. It loads
all that an agent and its workers load, reads the configuration, and prints one line of JSON
(Answer), a form that stays: versions of different age speak it with each other. Another status than
0: it could not.
"""

import sys
from pathlib import Path

import msgspec

from agent import VERSION, app, config_file
from agent.errors import HoldfastError
from agent.inference import worker
from agent.inference.engines import engine
from agent.store import schema
from agent.updates.slots.probe import Answer


def main(config: str) -> int:
    """The exit status."""
    assert app and worker, "all there is was loaded"
    for kind in ("onnx", "speech"):
        engine(kind)
    try:
        config_file.load(Path(config))
    except HoldfastError as error:
        return error.told()
    answer = Answer(VERSION, len(schema.steps()), schema.OPENS_FROM)
    sys.stdout.buffer.write(msgspec.json.encode(answer) + b"\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))

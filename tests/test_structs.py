"""Threads find every Struct whole."""

import subprocess
import sys

from msgspec import Struct
from msgspec.json import Decoder

from agent import structs
from tests.outside import ROOT

LOOKED = """
import sys
import agent.cli.run
from msgspec import Struct
from msgspec.json import Decoder

made, calls, waiting = set(), [], Struct.__subclasses__()
while waiting:
    one = waiting.pop()
    waiting += one.__subclasses__()
    calls.clear()
    sys.setprofile(lambda frame, event, _: calls.append(frame.f_code.co_name))
    try:
        Decoder(one)
    except TypeError:  # it is only written
        continue
    finally:
        sys.setprofile(None)
    made.add(one.__name__)
    assert "get_class_annotations" not in calls, one
print(*made)
"""


def test_an_agent_knows_all_its_structs_before_it_has_threads() -> None:
    asked = [sys.executable, "-c", LOOKED]
    done = subprocess.run(asked, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert {"Manifest", "Config", "Segment", "Setup"} <= set(done.stdout.split())


class Asked:
    """A type in a Struct, which counts how often it was looked at."""

    times = 0

    def __class_getitem__(cls, kind: type) -> type:
        cls.times += 1
        return kind


class Read(Struct):
    one: "Asked[int]"  # type: ignore[type-arg]


class Written(Struct):
    one: str | bytes


def test_what_is_made_is_made_once_and_what_cannot_be_read_is_passed_over() -> None:
    structs.make_all()
    assert Asked.times == 1
    assert Decoder(Read).decode(b'{"one": 1}') == Read(1)
    assert Asked.times == 1

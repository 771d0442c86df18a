"""Faults from outside, each on an agent of its own: seen, over by itself, and nothing is lost.

They are those of `python -m bench.faults`. Some are drawn for each run; HOLDFAST_SEED draws those
of a failure that was printed, HOLDFAST_LONG=1 has all of them.
"""

import os
import random
import tempfile
from pathlib import Path

from bench.faults import SEEN_S, all_tried, shown
from bench.faults_ways import FAULTS, compiled
from tests.host.grouped import needs_group
from tests.outside import program
from tests.store.faults.disk import needs_fuse

LONG = os.environ.get("HOLDFAST_LONG") == "1"
SEED = int(os.environ.get("HOLDFAST_SEED", random.randrange(1 << 30)))
DRAWN = 2


def test_each_is_seen_and_is_over_and_nothing_is_lost() -> None:
    """How soon is measured, and not asserted."""
    needs_fuse()
    for controller in ("freezer", "cpu"):
        needs_group(controller)
    if LONG:  # the clock's
        program("cc", "gcc")
    print("HOLDFAST_SEED", SEED)
    quick = [one for one in FAULTS if one.quick]
    chosen = FAULTS if LONG else random.Random(SEED).sample(quick, DRAWN)
    with tempfile.TemporaryDirectory(prefix="holdfast-") as name:  # sockets have short paths
        outcomes = all_tried(chosen, Path(name), compiled(Path(name)))
    print(shown(outcomes))
    assert not [one.lost for one in outcomes if one.lost]
    assert not [one.fault.name for one in outcomes if one.back_s is None]
    to_be_seen = [one for one in outcomes if one.fault.unseen_s >= SEEN_S]
    assert not [one.fault.name for one in to_be_seen if one.seen_s is None]

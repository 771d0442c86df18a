"""A small real filesystem, filled and freed under load: accepted is accepted, and nothing ends.

HOLDFAST_LONG=1 fills it 20 times.
"""

import contextlib
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.outside import program
from tests.store.faults.child import LONG, Producer
from tests.store.faults.disk import absent, unmount
from tests.store.faults.judge import Promises

FILLS = 20 if LONG else 3
SIZE_MB = 48


@contextlib.contextmanager
def small(kind: str, folder: Path) -> Iterator[Path]:
    """A filesystem of SIZE_MB, mounted; tmpfs, or ext4 in a file."""
    place = folder / "small"
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={SIZE_MB}m", "tmpfs", str(place)]
    if kind == "ext4":
        mkfs, image = program("mkfs.ext4", "e2fsprogs"), folder / "image"
        with image.open("wb") as file:
            file.truncate(SIZE_MB << 20)
        subprocess.run([mkfs, "-q", "-F", str(image)], check=True)
        command = ["mount", "-o", "loop", str(image), str(place)]
    if os.geteuid() != 0:
        absent("not root", "mounting a small filesystem needs root")
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        absent(f"no {kind} can be mounted here: {done.stderr.strip()}", "needs CAP_SYS_ADMIN")
    try:
        yield place
    finally:
        unmount(place)


def fill(ballast: Path) -> None:
    """Take every byte that is left."""
    with ballast.open("ab", buffering=0) as file:
        for size in (1 << 20, 4096, 1):
            with contextlib.suppress(OSError):
                while True:
                    file.write(bytes(size))


@pytest.mark.parametrize("kind", ["tmpfs", "ext4"])
def test_filled_and_freed_under_load(tmp_path: Path, kind: str) -> None:
    offline = tmp_path / "offline"
    with small(kind, tmp_path) as place:
        ballast, var = place / "ballast", place / "var"
        with Producer(var, tmp_path / "said", "1", "--offline", str(offline)) as child:
            for _ in range(FILLS):
                child.heard(100, "appended")
                offline.touch()
                fill(ballast)
                child.heard(50, "failed")
                offline.unlink()
                child.heard(3, "acked")  # on the full disk: that is what the reserve is for
                ballast.unlink()
                child.heard(100, "appended")
            child.kill()
        promises = Promises()
        promises.learn(child.lines())
        errors = {line.split()[2] for line in child.lines() if line.startswith("failed")}
        assert promises.faults(var) == []
        assert "StoreFull" in errors
        assert errors <= {"StoreFull", "StoreError"}


def test_killed_on_a_full_disk(tmp_path: Path) -> None:
    """And opened again when there is room."""
    with small("tmpfs", tmp_path) as place:
        offline = tmp_path / "offline"
        offline.touch()
        with Producer(place / "var", tmp_path / "said", "1", "--offline", str(offline)) as child:
            child.heard(100, "appended")
            fill(place / "ballast")
            child.heard(10, "failed")
            child.kill()
        promises = Promises()
        promises.learn(child.lines())
        (place / "ballast").unlink()
        assert promises.faults(place / "var") == []

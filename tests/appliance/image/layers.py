"""What an image is made of, layer by layer, kept between the runs.

Format  : a folder in the cache for each, `KIND-DIGEST`, by the digest of what went into it.
Limits  : of each kind the newest is kept.
Recovery: a layer is made as `KIND-new` and renamed; what a crash left goes with the next one.
"""

import hashlib
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).parents[3]
Input = str | Path


class Layers:
    """The cache."""

    def __init__(self, cache: Path, tell: Callable[[str], None]) -> None:
        """`tell` is told what is made."""
        self._cache = cache
        self._tell = tell

    def made(self, kind: str, inputs: list[Input], make: Callable[[Path], None]) -> Path:
        """The folder of a layer of these inputs; `make` fills it, and its elders are removed."""
        found = self._cache / f"{kind}-{_digest(inputs)}"
        if not found.exists():
            self._tell(f"appliance: making {found}")
            for elder in self._cache.glob(f"{kind}-*"):
                shutil.rmtree(elder)
            new = self._cache / f"{kind}-new"
            new.mkdir()
            make(new)
            new.rename(found)
        return found


def _digest(inputs: list[Input]) -> str:
    made = hashlib.sha256()
    for one in inputs:
        if isinstance(one, Path):
            made.update(f"{one.relative_to(ROOT)} {one.stat().st_mode:o}\n".encode())
            made.update(one.read_bytes())
        else:
            made.update(one.encode())
    return made.hexdigest()[:16]


def run(*command: Input) -> None:
    """Run a program to its end, wherever it lies. Raises CalledProcessError."""
    subprocess.run([str(one) for one in command], check=True, env=_environment())


def said(*command: Input) -> list[str]:
    """The lines that a program says. Raises CalledProcessError."""
    given = [str(one) for one in command]
    done = subprocess.run(given, stdout=subprocess.PIPE, text=True, check=True, env=_environment())
    return done.stdout.splitlines()


def _environment() -> dict[str, str]:
    """Programs for administrators, too."""
    return {**os.environ, "PATH": f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"}


def archive(tree: Path, path: Path) -> None:
    """A folder as the kernel takes it: a compressed cpio archive; several may follow each other."""
    pack = "cpio --quiet --null --create --format=newc --owner=0:0"
    command = f"find . -mindepth 1 -print0 | {pack} | gzip -1"
    with path.open("wb") as out:
        subprocess.run(["sh", "-c", command], cwd=tree, stdout=out, check=True)

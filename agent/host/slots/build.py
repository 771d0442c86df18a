"""Puts a signed version of the agent into the slot that does not run (holdfast-build.service).

It runs as root, of the version that runs, and believes nobody: not who has asked, nor the file that
the agent has put there, until a signature by one of root's own keys was compared with all of it.
Nothing of the new version is run here (wheels have no code of their own at their installation).

Limits  : one at a time, never while a version is on trial, for then the other slot is the way back.
          No version that is older than the one that runs. Nothing is removed before all that can be
          known was looked at: signature, digests, Python, machine, room on the disk.
Format  : layout.py.
Recovery: a slot without `slot.json` is not whole, and nobody's: it is made anew from the beginning.
          `slot.json` is written after everything else was put on the disk.
"""

import argparse
import fcntl
import hashlib
import os
import platform
import shutil
import subprocess
import sys
import time
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import IO

import msgspec

from agent import plain_file, whole_file
from agent.errors import HoldfastError, NotNow, ProtocolError
from agent.host.slots.layout import NotBuilt, Slot, Slots, other
from agent.protocol.package import PACKAGE_BYTES_MAX, PIECE_BYTES, Manifest, Package, newer_or_same

SPARE_BYTES = 64 << 20  # pip itself, and what a full disk would hurt
GROWTH = 1.5  # of what is unpacked: compiled files, and blocks that are not full
PIP_S_MAX = 1500.0
SAID_CHARS_MAX = 1000
LOCK_TRIES = 20  # in two seconds
REFUSED, BUSY = 1, 75
_ENVIRONMENT = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C", "HOME": "/nonexistent"}


class Builder:
    """One package, into one slot."""

    def __init__(self, folder: Path, package: Path, keys: Path) -> None:
        """`keys` is root's file: one hf1pub: key a line."""
        self._slots = Slots(folder, (folder / "venv").resolve().name)
        self._package, self._keys = package, keys
        self._work = folder / "slots" / "incoming"
        self._digest = ""

    def build(self) -> Slot:
        """Have the version in its slot. Raises HoldfastError, OSError: the slot is as it was, or
        not whole."""
        self._check_trial()
        shutil.rmtree(self._work, ignore_errors=True)
        self._work.mkdir(mode=0o700)
        try:
            return self._built()
        finally:
            shutil.rmtree(self._work, ignore_errors=True)

    def _check_trial(self) -> None:
        if self._slots.trial() or self._slots.linked != self._slots.running:
            raise NotNow("a version is on trial, and the other slot is the way back", "wait for it")

    def refuse(self, error: Exception) -> None:
        """Have the agent know why. Raises OSError."""
        hint = (
            error.hint if isinstance(error, HoldfastError) else "see journalctl -u holdfast-build"
        )
        found = NotBuilt(self._digest, str(error)[:SAID_CHARS_MAX], hint[:SAID_CHARS_MAX])
        whole_file.replace(self._work.with_name("refused.json"), msgspec.json.encode(found))

    def _built(self) -> Slot:
        own = self._taken()
        with own.open("rb") as file:
            package = Package(file, self._believed())
            manifest = package.manifest
            self._check(manifest)
            wheels = self._work / "wheels"
            wheels.mkdir()
            package.unpack(wheels)
        own.unlink()
        slot = other(self._slots.running)
        self._check_room(wheels, self._slots.place(slot))
        self._make(self._slots.place(slot), manifest, wheels)
        made = Slot(manifest.version, self._digest)
        os.sync()  # thousands of files
        whole_file.replace(self._slots.place(slot) / "slot.json", msgspec.json.encode(made))
        return made

    def _taken(self) -> Path:
        """A copy that nobody else can change any more."""
        own, digest, size = self._work / "package", hashlib.sha256(), 0
        with plain_file.opened(self._package) as source, own.open("xb") as copy:
            while piece := source.read(PIECE_BYTES):
                size += len(piece)
                if size > PACKAGE_BYTES_MAX:
                    raise ProtocolError(f"the package has more than {PACKAGE_BYTES_MAX} bytes")
                digest.update(piece)
                copy.write(piece)
        self._digest = digest.hexdigest()
        return own

    def _believed(self) -> list[str]:
        try:
            rows = self._keys.read_text().splitlines()
        except FileNotFoundError:
            rows = []
        keys = [row.partition("#")[0].strip() for row in rows]
        if not any(keys):
            raise ProtocolError(
                f"no key is believed for versions of the agent: {self._keys} has none",
                "put the public key of who makes them there, one hf1pub:... a line",
            )
        return [key for key in keys if key]

    def _check(self, manifest: Manifest) -> None:
        python = f"{sys.version_info.major}.{sys.version_info.minor}"
        if manifest.python != python:
            raise ProtocolError(
                f"version {manifest.version} is for Python {manifest.python}, here is {python}",
                "take the package for this Python",
            )
        if manifest.machine not in ("any", platform.machine()):
            raise ProtocolError(
                f"version {manifest.version} is for {manifest.machine}, this machine is "
                f"{platform.machine()}",
                "take the package for this machine",
            )
        running = self._slots.there(self._slots.running)
        if running and not newer_or_same(manifest.version, running.version):
            raise ProtocolError(
                f"version {manifest.version} is older than {running.version}, which runs",
                "agent.rollback goes back to the former version",
            )

    def _check_room(self, wheels: Path, slot: Path) -> None:
        unpacked = 0
        for path in wheels.iterdir():
            try:
                with zipfile.ZipFile(path) as wheel:
                    unpacked += sum(one.file_size for one in wheel.infolist())
            except zipfile.BadZipFile as error:
                raise ProtocolError(f"{path.name}: {error}", "have it made anew") from error
        disk = os.statvfs(wheels)
        free = disk.f_bavail * disk.f_frsize + _bytes_in(slot)
        wanted = int(GROWTH * unpacked) + SPARE_BYTES
        if free < wanted:
            raise NotNow(
                f"{slot.parent}: {free >> 20} MiB are free, and {wanted >> 20} are needed",
                "make room on the system's disk",
            )

    def _make(self, slot: Path, manifest: Manifest, wheels: Path) -> None:
        with (slot.parent / "link.lock").open("ab") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # nobody switches to it from here on (slots.sh)
            self._check_trial()
            (slot / "slot.json").unlink(missing_ok=True)
            _sync(slot)
        shutil.rmtree(slot, ignore_errors=True)
        self._run([sys.executable, "-I", "-m", "venv", str(slot)])
        names = self._work / "wheels.txt"
        rows = [f"{wheels / one.name} --hash=sha256:{one.digest}\n" for one in manifest.wheels]
        names.write_text("".join(rows))
        pip = [str(slot / "bin" / "python"), "-I", "-m", "pip", "--isolated", "install", "--quiet"]
        pip += ["--no-index", "--no-cache-dir", "--disable-pip-version-check", "--require-hashes"]
        self._run([*pip, "--requirement", str(names)])

    def _run(self, argv: Sequence[str]) -> None:
        """Raises NotNow with what it said."""
        # Not in /tmp, which often is memory, and what pip unpacks there is as large as the version.
        env = {**_ENVIRONMENT, "TMPDIR": str(self._work)}
        try:
            done = subprocess.run(
                argv, env=env, capture_output=True, text=True, timeout=PIP_S_MAX, check=False
            )
        except subprocess.TimeoutExpired as error:
            raise NotNow(f"{argv[0]} did not end within {PIP_S_MAX:.0f} s", "try again") from error
        if done.returncode:
            said = (done.stderr or done.stdout).strip()[-SAID_CHARS_MAX:]
            raise NotNow(f"{' '.join(argv[:5])} ended with status {done.returncode}: {said}")


def _bytes_in(folder: Path) -> int:
    return sum(one.lstat().st_blocks * 512 for one in folder.rglob("*"))


def _sync(folder: Path) -> None:
    if folder.is_dir():
        fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)


def _locked(file: IO[bytes]) -> bool:
    """Whether nobody else builds; who only looks whether somebody does, holds it for an instant."""
    for _ in range(LOCK_TRIES):
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            time.sleep(0.1)
        else:
            return True
    return False


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit status: 0 it is built, 1 refused (and why lies there), 75 another one is at it."""
    parser = argparse.ArgumentParser("build", description=__doc__.partition("\n")[0])
    for name in ("--folder", "--package", "--keys"):
        parser.add_argument(name, type=Path, required=True)
    asked = parser.parse_args(arguments)
    os.umask(0o022)  # the agent's user must read what root installs
    with (asked.folder / "slots" / "build.lock").open("ab") as lock:
        if not _locked(lock):
            return BUSY
        builder = Builder(asked.folder, asked.package, asked.keys)
        try:
            made = builder.build()
        except (HoldfastError, OSError) as error:
            print(f"holdfast-build: {error}", file=sys.stderr)
            builder.refuse(error)
            return REFUSED
    print(f"holdfast-build: version {made.version} is in its slot", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""The folder that devices read: metadata and targets, as The Update Framework lays them out.

    metadata/N.root.json       all roots, from the first one on: a device follows them
    metadata/N.targets.json    what there is          metadata/N.snapshot.json   which state of it
    metadata/timestamp.json    the newest snapshot    targets/FOLDER/SHA256.NAME the content

Limits  : what a device takes: 512 kB of a root, 16 kB of a timestamp, 2 MB of a snapshot and 5 MB
          of targets (some 10,000 of them).
Recovery: a state is written from its content up, and the timestamp last, each file whole or not at
          all: until then all that devices read is the state before. What a crash leaves over is in
          nobody's way: it has the number of the next state, which overwrites it. A root is written
          after all that it needs (publishing.py).
"""

import contextlib
import fcntl
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tuf.api.exceptions import RepositoryError
from tuf.api.metadata import Metadata, Root, Snapshot, Targets, Timestamp

from agent import whole_file
from agent.errors import ConfigError, NotNow
from agent.protocol.content import METADATA, TARGETS

ROLES = (Root.type, Targets.type, Snapshot.type, Timestamp.type)
COPY_BYTES = 1 << 20
BYTES_MAX = {
    Root.type: 512_000,
    Targets.type: 5_000_000,
    Snapshot.type: 2_000_000,
    Timestamp.type: 16_384,
}


class State:
    """The four documents that devices believe now."""

    def __init__(
        self,
        root: Metadata[Root],
        targets: Metadata[Targets],
        snapshot: Metadata[Snapshot],
        timestamp: Metadata[Timestamp],
    ) -> None:
        self.root = root
        self.targets = targets
        self.snapshot = snapshot
        self.timestamp = timestamp


class Repository:
    """`home/repository` is served; `home/draft.json` and `home/terms.json` are ours."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.folder = home / "repository"
        self._metadata = self.folder / METADATA

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """One command at a time changes it. Raises NotNow, ConfigError."""
        try:
            self.home.mkdir(parents=True, exist_ok=True)
            file = (self.home / ".lock").open("a")
        except OSError as error:
            raise ConfigError(
                f"{error.filename}: {error.strerror}", "name a folder to write to with --home"
            ) from error
        with file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise NotNow(
                    f"{self.home}: another command changes it", "try again when it is done"
                ) from error
            yield

    @property
    def begun(self) -> bool:
        """Whether there is one."""
        return self.root_file(1).exists() and (self._metadata / "timestamp.json").exists()

    def root_file(self, version: int) -> Path:
        """A root, as devices know it from the beginning or follow it."""
        return self._metadata / f"{version}.root.json"

    def state(self) -> State:
        """What is published. Raises ConfigError."""
        if not self.begun:
            raise ConfigError(
                f"{self.folder}: holds no repository",
                "begin one: holdfast-fleet updates init, or name its folder with --home",
            )
        version = 1
        while self.root_file(version + 1).exists():
            version += 1
        timestamp = self._read(Timestamp, "timestamp.json")
        snapshot_version = timestamp.signed.snapshot_meta.version
        snapshot = self._read(Snapshot, f"{snapshot_version}.snapshot.json")
        named = snapshot.signed.meta.get("targets.json")
        targets_version = named.version if named else 0
        return State(
            self._read(Root, f"{version}.root.json"),
            self._read(Targets, f"{targets_version}.targets.json"),
            snapshot,
            timestamp,
        )

    def _read(self, kind: type[Any], name: str) -> Metadata[Any]:
        path = self._metadata / name
        try:
            found: Metadata[Any] = Metadata.from_bytes(path.read_bytes())
        except (OSError, RepositoryError) as error:
            raise ConfigError(
                f"{path}: cannot be read: {error}",
                "restore the folder from a copy, or from one that devices read",
            ) from error
        if not isinstance(found.signed, kind):
            raise ConfigError(f"{path}: is no {kind.__name__}", "restore the folder from a copy")
        return found

    def write(self, role: str, document: Metadata[Any]) -> None:
        """A document under its own name. Raises NotNow for one that no device would take."""
        content = document.to_bytes()
        if len(content) > BYTES_MAX[role]:
            raise NotNow(
                f"{role}: {len(content):,} bytes; devices take {BYTES_MAX[role]:,}",
                "remove targets that no device needs any more: holdfast-fleet updates remove",
            )
        version = "" if role == Timestamp.type else f"{document.signed.version}."
        whole_file.replace(self._metadata / f"{version}{role}.json", content)

    def place(self, target: str, sha256: str) -> Path:
        """Where the content of a target lies."""
        folder, _, name = target.rpartition("/")
        return self.folder / TARGETS / folder / f"{sha256}.{name}"

    def bring(self, file: Path, target: str, sha256: str) -> None:
        """Copy content to its place, whole or not at all."""
        place = self.place(target, sha256)
        if place.exists():
            return
        place.parent.mkdir(parents=True, exist_ok=True)
        partial = place.with_name(f".{place.name}.part")
        with file.open("rb") as content, partial.open("wb") as copy:
            shutil.copyfileobj(content, copy, COPY_BYTES)
            copy.flush()
            os.fsync(copy.fileno())
        whole_file.settle(partial, place)

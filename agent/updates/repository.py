"""New versions beside the models: unpacked, verified, put in their place at once; and removed.

Limits  : what is free on the disk of the models stays above `free_bytes_min`; one version is
          unpacked at a time.
Format  : `<models>/.staging/in/` is a model repository of its own, for the one version that is not
          admitted yet; `.staging/out/` has what is no version any more. Both lie on the file system
          of the models, so that a rename puts a version in its place, or takes it away, whole. A
          version that is in its place is never written to.
Recovery: `clear` removes what a crash left in `.staging`. A version is there, or it is not.
"""

import errno
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

from agent.errors import ModelError, NotThere
from agent.host.disk import disk
from agent.inference.catalog import Catalog, Model
from agent.inference.catalog.manifest import MANIFEST, MANIFEST_BYTES_MAX
from agent.inference.catalog.place import read
from agent.updates.archive import Unpacker, Wanted, sync

STAGING = ".staging"


class Repository:
    """The folder of the models; slow, for threads, one after the other."""

    def __init__(self, root: Path, signed_by: Sequence[str], free_bytes_min: int) -> None:
        """Raises ConfigError for what is no key."""
        self.catalog = Catalog(root, signed_by)
        self._root = root
        self._in, self._out = root / STAGING / "in", root / STAGING / "out"
        self._staged = Catalog(self._in, signed_by)
        self._free_bytes_min = free_bytes_min

    def clear(self) -> None:
        """Nothing is under way any more. Raises ModelError."""
        try:
            if os.path.lexists(self._in.parent):
                shutil.rmtree(self._in.parent)
        except OSError as error:
            raise self._failed("what is left of an update cannot be removed", error) from error

    def stage(self, archive: Path, wanted: Wanted, halted: Callable[[], bool]) -> Model:
        """Unpack a version, and see that it is whole, and signed. Raises ModelError."""
        self.clear()
        try:
            self._in.mkdir(parents=True)
        except OSError as error:
            raise self._failed("nothing can be put there", error) from error
        manifest = Unpacker(self._room, halted).unpack(archive, self._in, wanted)
        return self._staged.verified(manifest.name, manifest.version)

    def there(self, model: Model) -> bool:
        """Whether a version that was staged lies in its place, with this very content.

        Raises ModelError where another one of that number does, or a damaged one.
        """
        name, version = model.manifest.name, model.manifest.version
        target = self._root / name / str(version)
        if not os.path.lexists(target) or _empty(target):
            return False
        found = self.catalog.verified(name, version)
        mine, other = (one.folder / MANIFEST for one in (model, found))
        if other.is_file() and read(other, MANIFEST_BYTES_MAX) == read(mine, MANIFEST_BYTES_MAX):
            return True
        raise ModelError(
            f"{target}: there is a version {version} of {name} with other content",
            "a version is never changed: publish this one under another number",
        )

    def put(self, model: Model) -> None:
        """Put a staged version in its place, on the disk when this returns. Raises ModelError."""
        above = self._root / model.manifest.name
        try:
            above.mkdir(exist_ok=True)
            model.folder.rename(above / str(model.manifest.version))
            sync(above)
            sync(self._root)
        except OSError as error:
            raise self._failed(f"{model.label} cannot be put in its place", error) from error

    def take_away(self, name: str, version: int) -> None:
        """Have a version be there no more, whole; `clear` frees its room.

        Raises NotThere, ModelError.
        """
        folder = self._root / name / str(version)
        if version not in self.catalog.versions(name):
            raise NotThere(f"there is no version {version} of model {name!r}", "holdfast models ls")
        self.clear()
        try:
            self._out.mkdir(parents=True)
            folder.rename(self._out / str(version))
            sync(folder.parent)
        except OSError as error:
            raise self._failed(f"{name}/{version} cannot be removed", error) from error

    def _room(self, size_bytes: int) -> None:
        free = disk(self._root).free_bytes
        if free - size_bytes < self._free_bytes_min:
            raise ModelError(
                f"{self._root}: {size_bytes:,} bytes are to be written, {free:,} are free, and "
                f"{self._free_bytes_min:,} stay free (models.free_bytes_min)",
                "remove versions that nobody needs: the command model.remove",
            )

    def _failed(self, what: str, error: OSError) -> ModelError:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        hint = "make room on its disk" if full else "let the agent's user write there"
        return ModelError(f"{self._root}: {what}: {error.strerror or error}", hint)


def _empty(folder: Path) -> bool:
    """A folder with nothing in it, which a rename replaces."""
    return folder.is_dir() and not folder.is_symlink() and not any(folder.iterdir())

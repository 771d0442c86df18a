"""Archives of versions, as they should be, and as they should not."""

import hashlib
import io
import tarfile
from collections.abc import Iterable
from pathlib import Path

import zstandard

Entry = tuple[str, bytes]


def files_of(folder: Path) -> list[Entry]:
    """What an archive of a version holds, model.yaml first."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    paths.sort(key=lambda path: path.name != "model.yaml")
    return [(str(path.relative_to(folder)), path.read_bytes()) for path in paths]


def header(name: str, kind: bytes = tarfile.REGTYPE, **more: object) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type = kind
    for key, value in more.items():
        setattr(info, key, value)
    return info


def tar(entries: Iterable[Entry | tarfile.TarInfo], form: int = tarfile.USTAR_FORMAT) -> bytes:
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w", format=form) as file:
        for one in entries:
            if isinstance(one, tarfile.TarInfo):
                file.addfile(one)
            else:
                file.addfile(header(one[0], size=len(one[1])), io.BytesIO(one[1]))
    return content.getvalue()


def pack(folder: Path, path: Path, *, zstd: bool = False) -> tuple[Path, str]:
    """A version as an archive at `path`, and its digest."""
    return put(path, zstandard.compress(tar(files_of(folder))) if zstd else tar(files_of(folder)))


def put(path: Path, content: bytes) -> tuple[Path, str]:
    path.write_bytes(content)
    return path, hashlib.sha256(content).hexdigest()

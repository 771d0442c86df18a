"""The draft: what will be signed next. Files are checked here, long before anybody needs a key."""

import contextlib
import hashlib
from pathlib import Path
from typing import Any

import msgspec

from agent.errors import RequestError
from agent.protocol.content import TARGET, TARGETS, About
from fleet.updates import draft as drafts
from fleet.updates.draft import Added, Draft
from fleet.updates.repository import Repository, State


def draft(repository: Repository) -> Draft:
    """What there is. Raises ConfigError."""
    return drafts.read(_place(repository), Draft)


def add(repository: Repository, file: Path, told: dict[str, Any], target: str) -> tuple[str, Added]:
    """Take a file in, under a path of its own. Raises RequestError, ConfigError, OSError."""
    try:
        about = msgspec.convert(told, About)
    except msgspec.ValidationError as error:
        raise RequestError(f"what is to be signed with it: {error}", "see --help") from error
    if about.kind == "model" and not about.version.isdecimal():
        raise RequestError(f"version {about.version!r} of a model", "give a whole number")
    path = target or f"{about.kind}s/{about.name}-{about.version}{''.join(file.suffixes[-2:])}"
    if not TARGET.fullmatch(path):
        raise RequestError(
            f"{path!r}: no path of a target", "write letters, digits, ._- and /, as models/a-1.tar"
        )
    repository.state()  # before anything is copied: whether there is a repository
    try:
        with file.open("rb") as content:
            sha256 = hashlib.file_digest(content, "sha256").hexdigest()
            size_bytes = content.tell()
        repository.bring(file, path, sha256)
    except OSError as error:
        raise RequestError(f"{error.filename or file}: {error.strerror}", "name a file") from error
    if size_bytes == 0:
        raise RequestError(f"{file}: is empty", "name a file with something in it")
    added, now = Added(sha256, size_bytes, about), draft(repository)
    now.add[path] = added
    now.remove = [one for one in now.remove if one != path]
    drafts.write(_place(repository), now)
    return path, added


def remove(repository: Repository, target: str) -> bool:
    """Whether there was such a target."""
    now, published = draft(repository), repository.state().targets.signed.targets
    was = now.add.pop(target, None) is not None
    if target in published and target not in now.remove:
        now.remove.append(target)
        was = True
    if was:
        drafts.write(_place(repository), now)
    return was


def done(repository: Repository, state: State) -> None:
    """It was published: the draft is over, and so is content that nothing names any more."""
    drafts.write(_place(repository), Draft())
    named = {
        repository.place(path, found.hashes["sha256"])
        for path, found in state.targets.signed.targets.items()
    }
    folder = repository.folder / TARGETS
    for path in sorted(folder.rglob("*"), reverse=True):
        if path.is_dir():
            with contextlib.suppress(OSError):  # there is something in it
                path.rmdir()
        elif path not in named:
            path.unlink()


def _place(repository: Repository) -> Path:
    return repository.home / "draft.json"

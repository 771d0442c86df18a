"""Signing: what each role vouches for, by whose keys, and until when.

Every document is checked as a device will check it before anything is written, so that a key that
is not at hand is told, and changes nothing. Where keys change, what the new ones sign is signed by
the former ones too, as far as they are at hand, and the root is written last: a device that comes
in between believes it, whichever root it has got to.
"""

from collections.abc import Container, Iterable, Mapping, Sequence
from copy import deepcopy
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
from msgspec import Struct
from securesystemslib.signer import Key
from tuf.api.exceptions import UnsignedMetadataError
from tuf.api.metadata import (
    Metadata,
    MetaFile,
    Role,
    Root,
    Snapshot,
    TargetFile,
    Targets,
    Timestamp,
)

from agent.errors import NotNow
from agent.words import counted
from fleet.updates.draft import Draft, Terms
from fleet.updates.keys import Signers
from fleet.updates.repository import ROLES, Repository, State

Document = Metadata[Any]
BELOW: dict[str, tuple[str, ...]] = {  # what a role vouches for, at once or at one remove
    Root.type: (),
    Targets.type: (),
    Snapshot.type: (Targets.type,),
    Timestamp.type: (Targets.type, Snapshot.type),
}


class Published(Struct, frozen=True):
    """The roles that were signed; why the draft `waits` (empty: it does not)."""

    signed: list[str]
    waits: str


class Publishing:
    """One change of the repository, under its lock; `signers` are the keys at hand."""

    def __init__(
        self, repository: Repository, signers: Signers, terms: Terms, now: datetime | None = None
    ) -> None:
        self._repository = repository
        self._signers = signers
        self._terms = terms
        self._now = (now or datetime.now(UTC)).replace(microsecond=0)

    def begin(self, keys: Mapping[str, Sequence[Key]], thresholds: Mapping[str, int]) -> State:
        """The first state: nothing to fetch. Raises NotNow."""
        roles = {
            role: Role([key.keyid for key in keys[role]], thresholds.get(role, 1)) for role in ROLES
        }
        every = {key.keyid: key for role in ROLES for key in keys[role]}
        root = Metadata(Root(1, None, self._until(Root.type), every, roles, True))
        state = State(
            root,
            Metadata(Targets(1, None, self._until(Targets.type))),
            Metadata(Snapshot(1, None, self._until(Snapshot.type))),
            Metadata(Timestamp(1, None, self._until(Timestamp.type))),
        )
        self._write(state, list(ROLES), root.signed)
        return state

    def publish(self, state: State, draft: Draft, renew: Iterable[str] = ()) -> Published:
        """The draft; or a new signature of what is in `renew`, and no draft.

        Without either, snapshot and timestamp are signed anew, and so they are where a draft waits
        for keys of targets that are not at hand: else the timestamp would expire meanwhile. Raises
        NotNow.
        """
        wanted, waits = set(renew) or {Snapshot.type}, ""
        if renew and not draft.empty:
            waits = "--renew signs anew what is published"
        elif not draft.empty:
            names = state.root.signed.roles[Targets.type]
            waits = _lacking(Targets.type, names, self._signers)
        if not draft.empty and not waits:
            wanted.add(Targets.type)
            _apply(state.targets.signed, draft)
        signed = [role for role in ROLES if role in wanted or wanted.intersection(BELOW[role])]
        formerly: Root = deepcopy(state.root.signed)
        for role in signed:
            self._next(state, role)
        self._write(state, signed, formerly)
        return Published(signed, waits)

    def rotate(
        self, state: State, role: str, keys: Iterable[Key], threshold: int, *, keep: bool
    ) -> list[str]:
        """Other keys for a role, by a new root; the roles that were signed. Raises NotNow."""
        root: Root = state.root.signed
        formerly: Root = deepcopy(root)
        if not keep:
            for keyid in list(root.roles[role].keyids):
                root.revoke_key(keyid, role)
        for key in keys:
            root.add_key(key, role)
        root.roles[role].threshold = threshold
        if threshold > len(root.roles[role].keyids):
            raise NotNow(
                f"{role}: {threshold} signatures are wanted of "
                f"{counted(len(root.roles[role].keyids), 'key')}",
                "add keys, or lower --threshold",
            )
        signed = [one for one in ROLES if one in (Root.type, role) or role in BELOW[one]]
        for one in signed:
            self._next(state, one)
        self._write(state, signed, formerly)
        return signed

    def _next(self, state: State, role: str) -> None:
        document: Document = getattr(state, role)
        document.signed.version += 1
        document.signed.expires = self._until(role)

    def _until(self, role: str) -> datetime:
        return self._now + timedelta(days=getattr(self._terms, role))

    def _write(self, state: State, signed: list[str], formerly: Root) -> None:
        """Sign these for whoever believes the former root and for whoever believes this one.

        All are checked before any is written; the root is written last.
        """
        order = [role for role in (*ROLES[1:], Root.type) if role in signed]
        now: Root = state.root.signed
        for role in order:
            document: Document = getattr(state, role)
            _name(state, role)
            self._sign(document, role, (formerly, now))
            _check(document, role, now)
            if role == Root.type:
                _check(document, role, formerly)
        for role in order:
            self._repository.write(role, getattr(state, role))

    def _sign(self, document: Document, role: str, roots: Iterable[Root]) -> None:
        document.signatures.clear()
        wanted = {keyid for root in roots for keyid in root.roles[role].keyids}
        for keyid in sorted(wanted & set(self._signers)):
            document.sign(self._signers[keyid], append=True)


def _name(state: State, role: str) -> None:
    """Have a document name the exact bytes of the one below it."""
    if role == Snapshot.type:
        data = state.targets.to_bytes()
        version = state.targets.signed.version
        named = MetaFile.from_data(version, data, ["sha256"])
        state.snapshot.signed.meta = {"targets.json": named}
    elif role == Timestamp.type:
        data = state.snapshot.to_bytes()
        version = state.snapshot.signed.version
        state.timestamp.signed.snapshot_meta = MetaFile.from_data(version, data, ["sha256"])


def _check(document: Document, role: str, root: Root) -> None:
    """As a device does. Raises NotNow: which keys are missing."""
    try:
        root.verify_delegate(role, document.signed_bytes, document.signatures)
    except UnsignedMetadataError as error:
        raise NotNow(
            _lacking(role, root.roles[role], document.signatures),
            "plug in the stick with these keys, and name its folder with --keys (again for each)",
        ) from error


def _lacking(role: str, names: Role, made: Container[str]) -> str:
    """Which keys are missing; empty: there are as many as it takes."""
    lacking = [one[:12] for one in names.keyids if one not in made]
    could = len(names.keyids) - len(lacking)
    if could >= names.threshold:
        return ""
    return (
        f"{role}: needs {names.threshold} of {counted(len(names.keyids), 'signature')}, and "
        f"{could} could be made; not at hand: {', '.join(lacking)}"
    )


def _apply(targets: Targets, draft: Draft) -> None:
    for path in draft.remove:
        targets.targets.pop(path, None)
    for path, added in draft.add.items():
        custom = {"custom": msgspec.to_builtins(added.about)}
        targets.targets[path] = TargetFile(added.size_bytes, {"sha256": added.sha256}, path, custom)

"""What `holdfast-fleet updates status` shows."""

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import msgspec

from agent.words import printable
from fleet.updates import draft as drafts
from fleet.updates import drafting
from fleet.updates.repository import ROLES, Repository

OVERDUE_SHARE = 0.1  # of its time left, and a role is to be signed anew


def document(repository: Repository, now: datetime | None = None) -> dict[str, Any]:
    """For programs. `overdue` are the roles to be signed anew."""
    state, draft = repository.state(), drafting.draft(repository)
    terms = drafts.read(repository.home / "terms.json", drafts.Terms)
    root, now = state.root.signed, now or datetime.now(UTC)
    roles, overdue = {}, []
    for role in ROLES:
        signed = getattr(state, role).signed
        left_days = (signed.expires - now).total_seconds() / 86_400
        if left_days < OVERDUE_SHARE * getattr(terms, role):
            overdue.append(role)
        roles[role] = {
            "version": signed.version,
            "expires": signed.expires.isoformat(),
            "left_days": round(left_days, 1),
            "keys": list(root.roles[role].keyids),
            "threshold": root.roles[role].threshold,
        }
    targets = [
        {"target": path, "size_bytes": found.length, "sha256": found.hashes.get("sha256", "")}
        | (found.custom if isinstance(found.custom, dict) else {})
        for path, found in sorted(state.targets.signed.targets.items())
    ]
    return {
        "repository": str(repository.folder),
        "root_file": str(repository.root_file(1)),
        "roles": roles,
        "overdue": overdue,
        "targets": targets,
        "draft": msgspec.to_builtins(draft),
    }


def lines(document: dict[str, Any]) -> Iterator[str]:
    """For people."""
    yield f"{document['repository']}"
    for role, one in document["roles"].items():
        due = "   SIGN ANEW" if role in document["overdue"] else ""
        yield (
            f"  {role:<9} {one['version']:>5}   {one['threshold']} of {len(one['keys'])} keys   "
            f"until {one['expires'][:10]} ({one['left_days']:.0f} days){due}"
        )
    for one in document["targets"]:
        tags = f"   for {', '.join(one['tags'])}" if one.get("tags") else ""
        yield printable(f"  {one['target']}   {one['size_bytes']:,} bytes{tags}")
    for path in document["draft"]["add"]:
        yield printable(f"  + {path}   in the draft: publish it")
    for path in document["draft"]["remove"]:
        yield printable(f"  - {path}   goes at the next publish")

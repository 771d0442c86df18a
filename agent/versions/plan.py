"""What lies between two configurations: which sections change, and whether that takes a restart.

Also what a merge patch (RFC 7396) makes of a document. Pure.
"""

from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import yaml

from agent.config import Config
from agent.errors import ConfigError
from agent.versions.forms import Change
from agent.yaml_tree import tree

# What an agent is found by, and what its work lies in: it must not move under those who hold it.
PINNED = (("device_id",), ("store", "path"), ("api", "socket"))


class Hot(NamedTuple):
    """A section that can be changed while the agent runs.

    `restart` says why this change of it takes a restart all the same; "": it does not. `change`
    raises HoldfastError, and then nothing of it has changed.
    """

    restart: Callable[[Config, Config], str]
    change: Callable[[Config], Awaitable[object]]


class Plan(NamedTuple):
    """The sections that differ, and of them those that take a restart, with why."""

    changed: tuple[str, ...]
    restart: Mapping[str, str]

    def change(self, lost: str = "") -> Change:
        """The same, to be remembered; `lost` is what the new document has no more."""
        return Change({name: self.restart.get(name, "") for name in self.changed}, lost)


def plan(before: Config, after: Config, hot: Mapping[str, Hot]) -> Plan:
    """What would have to be done."""
    names = [one.encode_name for one in msgspec.structs.fields(Config)]
    changed = tuple(one for one in names if getattr(before, one) != getattr(after, one))
    restart = {}
    for name in changed:
        why = hot[name].restart(before, after) if name in hot else "it is read at the start alone"
        if why:
            restart[name] = why
    return Plan(changed, restart)


def check_pinned(before: Config, after: Config, file: Path) -> None:
    """Raises ConfigError where a change is for the file of --config alone."""
    for keys in PINNED:
        now, then = _at(before, keys), _at(after, keys)
        if now != then:
            raise ConfigError(
                f"{'.'.join(keys)}: is {now or 'not set'}, and cannot become {then or 'not set'} "
                "by an order",
                f"change it in {file} on the device, and restart the agent",
            )


def patched(document: bytes, patch: Mapping[str, Any], version: int) -> bytes:
    """A version's document with this merge patch: as data, so without comments and layout.

    The document itself where that changes none of them. Raises ConfigError.
    """
    _, value = tree(document, Path(f"version {version}"))
    merged = _merged(value, patch)
    if merged == value:
        return document
    head = f"# Made of version {version} by a patch. Its comments are in that version.\n"
    made = yaml.safe_dump(merged, sort_keys=False, allow_unicode=True)
    return f"{head}\n{made}".encode()


def holds(value: Any, patch: Any) -> bool:
    """Whether a document, as data, is as this merge patch would have it."""
    return bool(_merged(value, patch) == value)


def _merged(target: Any, patch: Any) -> Any:
    if not isinstance(patch, Mapping):
        return patch
    merged = dict(target) if isinstance(target, Mapping) else {}
    for key, value in patch.items():
        if value is None:
            merged.pop(key, None)
        else:
            merged[key] = _merged(merged.get(key), value)
    return merged


def _at(config: Config, keys: tuple[str, ...]) -> object:
    found: object = config
    for key in keys:
        found = getattr(found, key)
    return found

"""Reading the configuration file, checked as a whole before anything starts.

A mistake is reported with file, line and key, what was expected, and the nearest right spelling.
"""

import difflib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import yaml
from msgspec import Struct

from agent.config import Config, File, Folder, Loop, Microphone, Source
from agent.errors import ConfigError

UNITS = {
    "s": "seconds",
    "ms": "milliseconds",
    "us": "microseconds",
    "min": "minutes",
    "h": "hours",
    "hz": "hertz",
    "khz": "kilohertz",
    "bytes": "bytes",
    "kb": "kilobytes",
    "kib": "kibibytes",
    "mb": "megabytes",
    "mib": "mebibytes",
    "gb": "gigabytes",
    "gib": "gibibytes",
    "percent": "percent",
}


# PyYAML lets through what Python says of an impossible date or number, or of a section in itself.
STUMBLES = (yaml.YAMLError, ValueError, TypeError, AttributeError, LookupError, RecursionError)
SOURCES: dict[str, type[Source]] = {
    str(kind.__struct_config__.tag): kind for kind in (File, Folder, Loop, Microphone)
}


def load(path: Path) -> Config:
    """The configuration in `path`; ConfigError names file, line and key of the first mistake."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"{path}: cannot be read: {error}", "name a file with --config"
        ) from error
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
        repeated = list(_repeated(root)) if root else []
        value = yaml.safe_load(text)
    except STUMBLES as error:
        raise ConfigError(f"{path}: not YAML: {error}", "mend the syntax at that line") from error
    if root is None or not isinstance(value, dict):
        raise ConfigError(f"{path}: expected sections such as `link:` and `audio:`", _START)
    if repeated:
        raise ConfigError(f"{path}:{repeated[0]}", "keep one of them")
    try:
        config = msgspec.convert(value, Config)
    except msgspec.ValidationError as error:
        raise _explained(path, root, value, str(error)) from error
    return _checked(path, root, config)


_START = "config/default.yaml and config/schema.json show the right form"


def _checked(path: Path, root: yaml.Node, config: Config) -> Config:
    """What the types cannot say."""
    names = [source.name for source in config.audio.sources]
    for i, name in enumerate(names):
        if name in names[:i]:
            line = _line(root, ["audio", "sources", i, "name"])
            raise ConfigError(
                f"{path}:{line}: audio.sources[{i}].name: {name!r} is taken by another source",
                "give each source a name of its own",
            )
    segments = config.audio.segments
    if segments.close_probability > segments.open_probability:
        line = _line(root, ["audio", "segments", "close_probability"])
        raise ConfigError(
            f"{path}:{line}: audio.segments.close_probability: {segments.close_probability} is "
            f"above open_probability {segments.open_probability}",
            "close at or below the probability that opens",
        )
    if config.link.backoff_s_min > config.link.backoff_s_max:
        line = _line(root, ["link", "backoff_s_min"])
        raise ConfigError(f"{path}:{line}: link.backoff_s_min: above backoff_s_max", "swap them")
    return config


def _explained(path: Path, root: yaml.Node, value: Any, message: str) -> ConfigError:
    """msgspec's message as file, line, key, expectation and remedy."""
    what, _, where = message.partition(" - at `$")
    keys = _keys(where.rstrip("`"))
    unknown = re.search(r"unknown field `(.+)`", what)
    if unknown:
        key = unknown[1]
        line = _line(root, [*keys, key])
        at = f"{path}:{line}: {_dotted([*keys, key])}"
        return _unknown_key(at, key, _fields_at(value, keys))
    at = f"{path}:{_line(root, keys)}: {_dotted(keys) or 'the file'}"
    found = _at(value, keys)
    if isinstance(found, str) and re.match(r"^\s*[-+.\d]+\s*[A-Za-z%]+\s*$", found):
        return ConfigError(
            f"{at}: {found!r} carries a unit; expected a plain number",
            f"write the number alone, in {UNITS.get(_unit_of(str(keys[-1])), 'no unit')}",
        )
    if keys and keys[-1] == "kind":
        return ConfigError(f"{at}: unknown kind {found!r}", f"known: {', '.join(SOURCES)}")
    shown = "" if isinstance(found, (dict, list)) else f"; found {found!r}"
    return ConfigError(f"{at}: {what[0].lower()}{what[1:]}{shown}", _START)


def _unknown_key(at: str, key: str, known: list[str]) -> ConfigError:
    for right in known:
        unit = _unit_of(right)
        wrong = _unit_instead(key, right, unit)
        if unit and wrong is not None:
            return ConfigError(
                f"{at}: unknown unit {wrong or '(none)'!r}; this setting is in {UNITS[unit]}",
                f"write {right}",
            )
    near = difflib.get_close_matches(key, known, 1)
    return ConfigError(
        f"{at}: unknown key",
        f"did you mean {near[0]}?" if near else f"known here: {', '.join(sorted(known))}",
    )


def _unit_of(key: str) -> str:
    return next((word for word in key.split("_") if word in UNITS), "")


def _unit_instead(key: str, right: str, unit: str) -> str | None:
    """What stands in `key` where `right` has its unit: "" for nothing, None if they differ more."""
    before, _, after = f"_{right}_".partition(f"_{unit}_")
    between = f"_{key}_"
    if between == f"{before}_{after}":
        return ""
    if between.startswith(f"{before}_") and between.endswith(f"_{after}"):
        wrong = between[len(before) + 1 : len(between) - len(after) - 1]
        return wrong if wrong and "_" not in wrong else None
    return None


def _keys(where: str) -> list[str | int]:
    return [int(i) if i else name for name, i in re.findall(r"\.([A-Za-z0-9_]+)|\[(\d+)\]", where)]


def _dotted(keys: list[str | int]) -> str:
    return "".join(f"[{k}]" if isinstance(k, int) else f".{k}" for k in keys).lstrip(".")


def _at(value: Any, keys: list[str | int]) -> Any:
    for key in keys:
        if isinstance(value, dict):
            value = value.get(key)
        elif isinstance(value, list) and isinstance(key, int) and key < len(value):
            value = value[key]
    return value


def _fields_at(value: Any, keys: list[str | int]) -> list[str]:
    """The keys that the section at `keys` knows."""
    kind: Any = Config
    for depth, key in enumerate(keys):
        if isinstance(key, int):
            tag = (_at(value, keys[: depth + 1]) or {}).get("kind")
            kind = SOURCES.get(str(tag), Source)
        else:
            kind = {f.encode_name: f.type for f in msgspec.structs.fields(kind)}[key]
            if not isinstance(kind, type) or not issubclass(kind, Struct):
                continue
    known = [f.encode_name for f in msgspec.structs.fields(kind)]
    return [*known, "kind"] if issubclass(kind, Source) else known


def _line(root: yaml.Node, keys: list[str | int]) -> int:
    """The line, from 1, of the deepest node on the way to `keys`."""
    node, line = root, root.start_mark.line
    for key in keys:
        if isinstance(node, yaml.MappingNode):
            for k, v in node.value:
                if k.value == str(key):
                    node, line = v, k.start_mark.line
                    break
            else:
                break
        elif isinstance(node, yaml.SequenceNode) and isinstance(key, int) and key < len(node.value):
            node = node.value[key]
            line = node.start_mark.line
    return line + 1


def _repeated(node: yaml.Node) -> Iterator[str]:
    """Keys written twice in one section: YAML would keep the last one without a word."""
    if isinstance(node, yaml.MappingNode):
        seen: set[str] = set()
        for key, child in node.value:
            if key.value in seen:
                yield f"{key.start_mark.line + 1}: {key.value}: written twice in this section"
            seen.add(key.value)
            yield from _repeated(child)
    elif isinstance(node, yaml.SequenceNode):
        for child in node.value:
            yield from _repeated(child)

"""Reading the configuration file, checked as a whole before anything starts.

A mistake is reported with file, line and key, what was expected, and the nearest right spelling.
"""

import difflib
import re
from collections.abc import Iterable
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import msgspec
import yaml
from msgspec import Meta

from agent.config import Config, Domain, File, Folder, Loop, Microphone, PowerProfile, Source
from agent.contradictions import contradictions
from agent.errors import ConfigError
from agent.forms import Name
from agent.yaml_tree import CANNOT_BE_READ, START, line_of, tree

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
    "tb": "terabytes",
    "years": "years",
    "percent": "percent",
}


ORDERED: list[tuple[list[str | int], str, str]] = [  # section, and what must not exceed what in it
    (["audio", "segments"], "close_probability", "open_probability"),
    (["audio", "segments"], "margin_s", "hangover_s"),
    (["audio", "segments"], "hangover_s", "length_s_max"),
    (["audio", "segments"], "speech_s_min", "length_s_max"),
    (["link"], "backoff_s_min", "backoff_s_max"),
    (["updates"], "backoff_s_min", "backoff_s_max"),
]
NAMED: list[tuple[list[str | int], Any]] = [  # sections whose keys are names
    (["domains"], Domain),
    (["power", "profiles"], PowerProfile),
]
SOURCES: dict[str, type[Source]] = {
    str(kind.__struct_config__.tag): kind for kind in (File, Folder, Loop, Microphone)
}


def load(path: Path) -> Config:
    """The configuration in `path`; ConfigError names file, line and key of the first mistake."""
    return parse(read(path), path)


def read(path: Path) -> bytes:
    """What is written in `path`. Raises ConfigError."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(
            f"{path}: cannot be read: {error.strerror or error}", CANNOT_BE_READ
        ) from error


def parse(document: bytes, path: Path) -> Config:
    """The configuration that this is; `path` is what it is called in a ConfigError."""
    root, value = tree(document, path)
    try:
        config = msgspec.convert(value, Config)
    except msgspec.ValidationError as error:
        raise _explained(path, root, value, _named(value, str(error))) from error
    return _checked(path, root, config)


def _checked(path: Path, root: yaml.Node, config: Config) -> Config:
    """What the types cannot say."""
    names = [source.name for source in config.audio.sources]
    for i, name in enumerate(names):
        if name in names[:i]:
            line = line_of(root, ["audio", "sources", i, "name"])
            raise ConfigError(
                f"{path}:{line}: audio.sources[{i}].name: {name!r} is taken by another source",
                "give each source a name of its own",
            )
    for section, lower, upper in ORDERED:
        part: Any = config
        for key in section:
            part = getattr(part, str(key))
        if getattr(part, lower) > getattr(part, upper):
            line = line_of(root, [*section, lower])
            raise ConfigError(
                f"{path}:{line}: {_dotted([*section, lower])}: {getattr(part, lower)} is above "
                f"{upper} {getattr(part, upper)}",
                f"lower {lower}, raise {upper}, or swap them",
            )
    for keys, wrong, remedy in contradictions(config):
        raise ConfigError(f"{path}:{line_of(root, keys)}: {_dotted(keys)}: {wrong}", remedy)
    return config


def _named(value: Any, message: str) -> str:
    """msgspec's message with the name of a domain or profile, which msgspec does not tell."""
    for keys, kind in NAMED:
        at = _dotted(keys)
        if f"$.{at}[...]" not in message and f"in `$.{at}`" not in message:
            continue
        for name, one in _at(value, keys).items():
            try:
                msgspec.convert({name: one}, dict[Name, kind])  # type: ignore[valid-type]
            except msgspec.ValidationError as error:
                what, _, where = str(error).partition(" - at `")
                if where.startswith("key"):
                    what = f"expected {_form(Name)}"
                inner = where.removeprefix("$[...]") if where.startswith("$[...]") else "`"
                return f"{what} - at `$.{at}.{name}{inner}"
    return message


def _explained(path: Path, root: yaml.Node, value: Any, message: str) -> ConfigError:
    """msgspec's message as file, line, key, expectation and remedy."""
    what, _, where = message.partition(" - at `$")
    keys = _keys(where.rstrip("`"))
    unknown = re.search(r"unknown field `(.+)`", what)
    if unknown:
        key = unknown[1]
        line = line_of(root, [*keys, key])
        at = f"{path}:{line}: {_dotted([*keys, key])}"
        return _unknown_key(at, key, _fields(_type_at(value, keys)))
    at = f"{path}:{line_of(root, keys)}: {_dotted(keys) or 'the file'}"
    if keys and keys[-1] == "kind":
        return ConfigError(f"{at}: unknown kind {_at(value, keys)!r}", f"known: {_listed(SOURCES)}")
    return _wrong_value(at, what, _at(value, keys), _type_at(value, keys), keys)


def _wrong_value(at: str, what: str, found: Any, kind: Any, keys: list[str | int]) -> ConfigError:
    written = re.sub(r"//[^/@]*@", "//***@", repr(found))  # no password in a message
    allowed = _parts(kind)
    choices = [c for part in allowed if get_origin(part) is Literal for c in get_args(part)]
    if choices:
        return ConfigError(f"{at}: unknown value {written}", f"choose one of {_listed(choices)}")
    number = int in allowed or float in allowed
    if number and isinstance(found, str) and re.match(r"^\s*[-+.\d]+\s*[A-Za-z%]+\s*$", found):
        return ConfigError(
            f"{at}: {written} carries a unit; expected a plain number",
            f"write the number alone, in {UNITS.get(_unit_of(str(keys[-1])), 'no unit')}",
        )
    form = _form(kind)
    if form and ("matching regex" in what or re.match("Expected `int` [<>]", what)):
        what = f"expected {form}"
    shown = "" if isinstance(found, (dict, list)) else f"; found {written}"
    return ConfigError(f"{at}: {what[0].lower()}{what[1:]}{shown}", START)


def _listed(values: Iterable[object]) -> str:
    return ", ".join(map(str, values))


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
    return [int(i) if i else name for name, i in re.findall(r"\.([A-Za-z0-9_-]+)|\[(\d+)\]", where)]


def _dotted(keys: list[str | int]) -> str:
    return "".join(f"[{k}]" if isinstance(k, int) else f".{k}" for k in keys).lstrip(".")


def _at(value: Any, keys: list[str | int]) -> Any:
    for key in keys:
        if isinstance(value, dict):
            value = value.get(key)
        elif isinstance(value, list) and isinstance(key, int) and key < len(value):
            value = value[key]
    return value


def _type_at(value: Any, keys: list[str | int]) -> Any:
    """The type that the configuration has at `keys`."""
    kind: Any = Config
    for depth, key in enumerate(keys):
        if isinstance(key, int) and keys[:depth] == ["audio", "sources"]:
            source = _at(value, keys[: depth + 1])
            tag = source.get("kind") if isinstance(source, dict) else None
            kind = SOURCES.get(str(tag), Source)
        elif get_origin(kind) is dict:
            kind = get_args(kind)[1]
        elif isinstance(key, int):
            kind = get_args(_bare(kind))[0]
        elif key != "kind":
            kind = {f.encode_name: f.type for f in msgspec.structs.fields(kind)}[key]
    return kind


def _bare(kind: Any) -> Any:
    """A type without its bounds."""
    return get_args(kind)[0] if get_origin(kind) is Annotated else kind


def _parts(kind: Any) -> list[Any]:
    """A type without its bounds, a union as its members."""
    kind = _bare(kind)
    if get_origin(kind) in (Union, UnionType):
        return [part for member in get_args(kind) for part in _parts(member)]
    return [kind]


def _form(kind: Any) -> str:
    """What a text must look like, in words; "" where nothing is said of it."""
    if get_origin(kind) in (Union, UnionType):
        return next(filter(None, map(_form, get_args(kind))), "")
    said = get_args(kind)[1:] if get_origin(kind) is Annotated else ()
    return next((m.description for m in said if isinstance(m, Meta) and m.description), "")


def _fields(kind: Any) -> list[str]:
    """The keys that a section knows."""
    known = [f.encode_name for f in msgspec.structs.fields(kind)]
    return [*known, "kind"] if issubclass(kind, Source) else known

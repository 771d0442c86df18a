"""Writing single lines into the configuration file: all else in it stays as somebody wrote it.

The result is read again and compared before it takes the file's place. What cannot be written so
(sections in braces, values over several lines) is left to whoever runs the command.
"""

import json
import re
from pathlib import Path
from typing import Any

import yaml

from agent import config_file, whole_file, yaml_tree
from agent.errors import ConfigError

Lines = dict[tuple[str, ...], Any]  # key, within its section if it has one: value


def shown(lines: Lines) -> str:
    """The lines, as somebody would write them by hand."""
    text = ""
    for key, value in lines.items():
        text = _set(text, key, json.dumps(value))
    return text.strip("\n")


def write(path: Path, lines: Lines) -> bool:
    """Have these values in the file; whether it was changed. Raises ConfigError, OSError."""
    path = path.resolve()
    before = path.read_text("utf-8")
    text = before
    for key, value in lines.items():
        if _at(text, key) != value:
            text = _set(text, key, json.dumps(value))
            if _at(text, key) != value:
                why = "is written in a way that this command does not change"
                raise _by_hand(f"{path}: {'.'.join(key)}: {why}", lines)
    if text == before:
        return False
    _check(path, text, lines)
    whole_file.replace(path, text.encode(), whole_file.as_it_is(path))
    return True


def _check(path: Path, text: str, lines: Lines) -> None:
    """Raises ConfigError where the file would not be good any more."""
    trial = path.with_name(f"{path.name}.trial")
    whole_file.replace(trial, text.encode(), whole_file.as_it_is(path))
    try:
        config_file.load(trial)
    except ConfigError as error:
        said = str(error).removeprefix(f"{trial}:")
        raise _by_hand(f"{path}: with these lines it would not be good: {said}", lines) from error
    finally:
        trial.unlink()


def _by_hand(message: str, lines: Lines) -> ConfigError:
    return ConfigError(message, f"write into it by hand:\n{shown(lines)}")


def _set(text: str, key: tuple[str, ...], value: str) -> str:
    """The text with this value; perhaps with nothing of it, where it is written in another way."""
    lines = text.rstrip("\n").split("\n") if text else []
    *section, last = key
    begin, indent = 0, ""
    if section:
        at = _line_of(lines, 0, len(lines), rf"{section[0]}:\s*(#.*)?$")
        if at is None:
            return "\n".join([*lines, f"{section[0]}:", f"  {last}: {value}", ""])
        begin = at + 1
        indent = _indent(lines[begin:])
    end = _end(lines, begin) if section else len(lines)
    written = f"{indent}{last}: {value}"
    there = _line_of(lines, begin, end, rf"{indent}{last}:(\s|$)")
    if there is not None:
        lines[there] = written
    else:
        lines.insert(begin if section else end, written)
    return "\n".join([*lines, ""])


def _line_of(lines: list[str], begin: int, end: int, pattern: str) -> int | None:
    return next((i for i in range(begin, end) if re.match(pattern, lines[i])), None)


def _indent(lines: list[str]) -> str:
    """Of the first key of a section."""
    for line in lines:
        if found := re.match(r"(\s+)[A-Za-z_]+:", line):
            return found[1]
        if line.strip() and not line.lstrip().startswith("#"):
            break
    return "  "


def _end(lines: list[str], begin: int) -> int:
    """Where the next section begins."""
    found = _line_of(lines, begin, len(lines), r"[^\s#]")
    return len(lines) if found is None else found


def _at(text: str, key: tuple[str, ...]) -> Any:
    try:
        value = yaml.safe_load(text)
    except yaml_tree.STUMBLES:
        return None
    for one in key:
        value = value.get(one) if isinstance(value, dict) else None
    return value

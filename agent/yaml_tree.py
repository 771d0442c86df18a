"""A YAML document as its nodes, which know their lines, and as its values."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from agent.errors import ConfigError

NODES_MAX = 100_000  # aliases of aliases make thousands of millions of one line
# PyYAML lets through what Python says of an impossible date or number, or of a section in itself.
STUMBLES = (yaml.YAMLError, ValueError, TypeError, AttributeError, LookupError, RecursionError)
CANNOT_BE_READ = "name the file with --config, or in HOLDFAST_CONFIG"
START = "config/default.yaml and config/schema.json show the right form"


def tree(document: bytes, path: Path) -> tuple[yaml.Node, dict[str, Any]]:
    """The sections, and where they stand; nothing of them is checked. Raises ConfigError."""
    try:
        text = document.decode()
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: cannot be read: {error}", CANNOT_BE_READ) from error
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
        bloated = root is not None and _nodes(root) > NODES_MAX
        repeated = list(_repeated(root)) if root and not bloated else []
        value = yaml.safe_load(text) if not bloated else {}
    except STUMBLES as error:
        raise ConfigError(f"{path}: not YAML: {error}", "mend the syntax at that line") from error
    if bloated:
        wrong = f"more than {NODES_MAX} values, once its aliases (*) are written out"
        raise ConfigError(f"{path}: {wrong}", "write them out, and fewer of them")
    if root is None or not isinstance(value, dict):
        raise ConfigError(f"{path}: expected sections such as `link:` and `audio:`", START)
    if repeated:
        raise ConfigError(f"{path}:{repeated[0]}", "keep one of them")
    return root, value


def line_of(root: yaml.Node, keys: list[str | int]) -> int:
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


def _nodes(node: yaml.Node, known: dict[int, int] | None = None) -> int:
    """How many values there are with all aliases written out; endless where one holds itself."""
    known = {} if known is None else known
    if id(node) not in known:
        known[id(node)] = NODES_MAX + 1  # until it is known
        inner: list[yaml.Node] = []
        if isinstance(node, yaml.MappingNode):
            inner = [one for pair in node.value for one in pair]
        elif isinstance(node, yaml.SequenceNode):
            inner = node.value
        known[id(node)] = 1 + sum(_nodes(one, known) for one in inner)
    return known[id(node)]


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

"""What a bundle is, without an agent.

The one file of the command that sees the protocol: a stick is checked where it happens to be.
"""

from pathlib import Path
from typing import Any

import msgspec

from agent import plain_file
from agent.config import Config
from agent.errors import BundleError, ConfigError
from agent.protocol import bundle, signing


def checked(path: Path, settings: Config) -> dict[str, Any]:
    """A file's verdict, `whole` or why it is not, and what it is."""
    try:
        with plain_file.opened(path) as file:
            sealed = bundle.verify(file)
    except BundleError as error:
        said = {"verdict": error.verdict, "error": str(error), "hint": error.hint}
        return {"file": str(path), **said}
    except OSError as error:
        why = f"cannot be read: {error.strerror or error}"
        said = {"verdict": "unreadable", "error": why, "hint": "check the stick"}
        return {"file": str(path), **said}
    header, footer = sealed.header, sealed.footer
    return {
        "file": str(path),
        "verdict": "whole",
        "signer": _signer(header.by, settings),
        "size_bytes": sealed.size_bytes,
        "digest": sealed.digest,
        **msgspec.to_builtins(header),
        **msgspec.to_builtins(footer),
    }


def _signer(public: str, settings: Config) -> str:
    """Who that is, as far as this device knows."""
    if public in settings.bundle.fleet_keys:
        return "a key of the fleet"
    path = Path(settings.bundle.key_file)
    try:
        own = signing.Key.kept(path).public if path.exists() else None
    except ConfigError:  # it may be root's alone
        own = None
    return "this device's key" if public == own else "not known here"

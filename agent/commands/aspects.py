"""The aspects of the twin that commands alone bring about."""

from collections.abc import Awaitable, Callable
from typing import Any, Literal

import msgspec

from agent.commands.twin import Aspect
from agent.commands.verbs.sync import Limit
from agent.errors import RequestError
from agent.forms import Rate

Look = Callable[[], Any]
LEVELS = Literal["debug", "info", "warning", "error"]


def log_level(level: Look) -> Aspect:
    """`debug`, `info`, `warning` or `error`."""

    def differs(wanted: Any, actual: Any) -> bool:
        _form("log_level", wanted, LEVELS)
        return bool(wanted != actual)

    return Aspect(
        "log_level", _told(level), differs, lambda wanted, _: ("log.level", {"level": wanted})
    )


def paused(is_paused: Look) -> Aspect:
    """Whether nothing is to be sent: true or false."""

    def differs(wanted: Any, actual: Any) -> bool:
        _form("sync_paused", wanted, bool)
        return bool(wanted != actual)

    return Aspect(
        *("sync_paused", _told(is_paused), differs),
        lambda wanted, _: ("sync.pause" if wanted else "sync.resume", {}),
    )


def rate(limit: Look) -> Aspect:
    """The rate that holds in place of the configured ones, in bytes a second; null: none does."""

    def differs(wanted: Any, actual: Any) -> bool:
        _form("sync_rate_bytes_per_s_max", wanted, Rate | None)
        return bool(wanted != actual)

    return Aspect(
        *("sync_rate_bytes_per_s_max", _told(limit), differs),
        lambda wanted, _: ("sync.limit", msgspec.to_builtins(Limit(wanted))),
    )


def _told(look: Look) -> Callable[[], Awaitable[Any]]:
    async def actual() -> Any:
        return look()

    return actual


def _form(name: str, wanted: Any, form: Any) -> None:
    """Raises RequestError."""
    try:
        msgspec.convert(wanted, form)
    except msgspec.ValidationError as error:
        raise RequestError(f"twin state.{name}: {error}", "see docs/twin.md") from error

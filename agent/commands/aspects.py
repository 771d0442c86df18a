"""The aspects of the twin that commands alone bring about."""

from collections.abc import Awaitable, Callable
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct

from agent.commands.twin import Aspect
from agent.commands.verbs.sync import Limit
from agent.errors import RequestError
from agent.forms import ModelName, Rate

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


class Served(Struct, frozen=True, forbid_unknown_fields=True):
    """The version that is to serve, and where it is in the fleet's repository."""

    version: Annotated[int, Meta(ge=1, le=999_999_999)]
    target: str = ""


def models(serving: Look) -> Aspect:
    """By name, the version that is to serve: 4, or {"version": 4, "target": "models/speech-4.tar"}
    where it may have to be fetched first. Of a model that is not named nothing is wanted."""

    def wrong(wanted: Any, actual: Any) -> dict[str, Served]:
        _form("models", wanted, dict[ModelName, int | Served])
        named = {
            name: Served(one) if isinstance(one, int) else msgspec.convert(one, Served)
            for name, one in wanted.items()
        }
        return {name: one for name, one in named.items() if actual.get(name) != one.version}

    def command(wanted: Any, actual: Any) -> tuple[str, dict[str, Any]]:
        name, one = next(iter(sorted(wrong(wanted, actual).items())))
        if one.target:
            return "model.install", {"target": one.target, "activate": True}
        return "model.activate", {"name": name, "version": one.version}

    return Aspect("models", _told(serving), lambda *both: bool(wrong(*both)), command)


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

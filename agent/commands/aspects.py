"""The aspects of the twin: those that commands alone bring about, and one that is told alone."""

from collections.abc import Awaitable, Callable
from typing import Annotated, Any, Literal, NoReturn

import msgspec
from msgspec import Meta, Struct

from agent.commands.twin import Aspect
from agent.commands.verbs.sync import Limit
from agent.errors import RequestError
from agent.forms import ModelName, Rate
from agent.versions.plan import holds

Look = Callable[[], Any]
LEVELS = Literal["debug", "info", "warning", "error"]


def log_level(level: Look) -> Aspect:
    """`debug`, `info`, `warning` or `error`."""

    def differs(wanted: Any, actual: Any) -> bool:
        _form("log_level", wanted, LEVELS)
        return bool(wanted != actual)

    return Aspect(
        *("log_level", _told(level), differs),
        lambda wanted, _: ("log.level", {"level": wanted}),
        volatile=True,
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


class ConfigAspect:
    """What the configuration is to say, as a merge patch (RFC 7396) of it: keys that are to be
    otherwise, null for those that are to go. It is applied on trial, as by `config.apply`."""

    def __init__(self, live: Callable[[], Awaitable[tuple[int, dict[str, Any]]]]) -> None:
        self._live = live
        self._said: dict[str, Any] = {}

    def aspect(self) -> Aspect:
        """Reported is the version that is live."""
        return Aspect("config", self._actual, self._differs, self._command)

    async def _actual(self) -> Any:
        number, self._said = await self._live()
        return {"version": number}

    def _differs(self, wanted: Any, _: Any) -> bool:
        _form("config", wanted, dict[str, Any])
        return not holds(self._said, wanted)

    def _command(self, wanted: Any, _: Any) -> tuple[str, dict[str, Any]]:
        return "config.apply", {"patch": wanted, "why": "the cloud wants it so"}


def models(serving: Look) -> Aspect:
    """By name, the version that is to serve: 4, or {"version": 4, "target": "models/speech-4.tar"}
    where it may have to be fetched first. Of a model that is not named nothing is wanted. Each is
    ordered and tried by itself."""

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

    return Aspect(
        *("models", _told(serving), lambda *both: bool(wrong(*both)), command),
        parts=lambda wanted: {name: {name: one} for name, one in wanted.items()},
    )


def agent(running: Callable[[], Awaitable[Any]]) -> Aspect:
    """Which version of the agent runs, and how it stands; nobody can want it to be otherwise."""

    def nobody(_: Any, __: Any) -> NoReturn:
        raise RequestError(
            "twin state.agent: it is told, and cannot be wanted: order agent.update",
            "take it out of the document; see docs/agent-update.md",
        )

    return Aspect("agent", running, nobody, nobody)


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

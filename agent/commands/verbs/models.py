"""Commands to the models: what agent/updates/models.py does, as verbs."""

from typing import Annotated, Any

from msgspec import Meta, Struct

from agent.commands.verb import Call, IsOpen, Verb, not_ended
from agent.errors import RequestError
from agent.forms import ModelName
from agent.protocol.commands import CommandId
from agent.sections.inference import PROBATION_S_MAX
from agent.updates.models import Models
from agent.updates.orders import Origin

LANE = "models"
# A fetch over a bad network, and a probation: each has bounds of its own.
LONG_S = 7 * 86_400.0
PROVE_S = 600.0
Version = Annotated[int, Meta(ge=1, le=999_999_999)]
Probation = Annotated[float, Meta(ge=0, le=PROBATION_S_MAX)]


class Install(Struct, frozen=True, forbid_unknown_fields=True):
    """`target` is a model's file in the fleet's repository (`source`: a folder or URL, as a stick,
    in place of the configured ones; from afar one of those); or `path` a file below
    `models.drop_path`, with its `sha256`. `activate`: have it serve, too, on probation for
    `probation_s` (none: as configured)."""

    target: Annotated[str, Meta(max_length=1000)] = ""
    source: Annotated[str, Meta(max_length=1000)] = ""
    path: Annotated[str, Meta(max_length=1000)] = ""
    sha256: Annotated[str, Meta(pattern=r"^([0-9a-f]{64})?$(?!\n)")] = ""
    activate: bool = False
    probation_s: Probation | None = None


class Activate(Struct, frozen=True, forbid_unknown_fields=True):
    """The `version` (none: the newest) that is to serve, on probation for `probation_s` (none: as
    configured; 0: not at all)."""

    name: ModelName
    version: Version | None = None
    probation_s: Probation | None = None


class Rollback(Struct, frozen=True, forbid_unknown_fields=True):
    """The model's `name`. `of`: only if the version serves that the command of this id activated;
    it knows the name, too."""

    name: ModelName | None = None
    of: CommandId | None = None


class Remove(Struct, frozen=True, forbid_unknown_fields=True):
    """The `version` of the model `name` that is to go."""

    name: ModelName
    version: Version


class List(Struct, frozen=True, forbid_unknown_fields=True):
    """The model's `name`; without it: all."""

    name: ModelName | None = None


class ModelVerbs:
    """Each goes on after a crash from the step that it noted."""

    def __init__(self, models: Models, is_open: IsOpen) -> None:
        self._models = models
        self._is_open = is_open

    def verbs(self) -> list[Verb[Any]]:
        """The commands."""
        return [
            Verb(
                "model.install",
                "Fetch a version of a model, prove it, and put it among the models.",
                *(Install, self._install, "operate", LANE, LONG_S, self._install),
                foreign=self._foreign,
            ),
            Verb(
                "model.activate",
                "Have a version serve; it is watched for a time, and taken back if it fails.",
                *(Activate, self._activate, "operate", LANE, LONG_S, self._activate),
            ),
            Verb(  # it waits for no probation: it ends one
                "model.rollback",
                "Have the version serve that served before.",
                *(Rollback, self._roll_back, "operate", "", PROVE_S, self._roll_back),
            ),
            Verb(
                "model.remove",
                "Have a version go from the disk; never the one in use.",
                *(Remove, self._remove, "operate", LANE, PROVE_S, self._remove),
            ),
            Verb(
                "model.list",
                "The versions on the disk, and which of them serve.",
                *(List, self._list, "read", "", PROVE_S, self._list),
            ),
        ]

    def _foreign(self, args: Install) -> str:
        return self._models.foreign(args.source)

    async def _install(self, args: Install, call: Call) -> Any:
        if bool(args.target) == bool(args.path) or bool(args.path) != bool(args.sha256):
            raise RequestError(
                "expected either target, or path and sha256", "holdfast commands help model.install"
            )
        origin = Origin(args.target, args.source, args.path, args.sha256)
        return await self._models.install(
            call, origin, activate=args.activate, probation_s=args.probation_s
        )

    async def _activate(self, args: Activate, call: Call) -> Any:
        return await self._models.activate(call, args.name, args.version, args.probation_s)

    async def _roll_back(self, args: Rollback, call: Call) -> Any:
        if not (args.name or args.of):
            raise RequestError(
                "expected name, or of: the id of the command that activated the version",
                "holdfast commands help model.rollback",
            )
        early = args.of is not None and await self._is_open(args.of)
        done = await self._models.roll_back(call, args.name or "", args.of or "")
        if early and done.why:
            raise not_ended(args.of)
        return done

    async def _remove(self, args: Remove, call: Call) -> Any:
        return await self._models.remove(call, args.name, args.version)

    async def _list(self, args: List, call: Call) -> Any:
        return await self._models.rows(args.name or "")

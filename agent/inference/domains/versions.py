"""Which version of a model is to serve: what an operator chose last, else the newest; and whether
it may, as far as its files show.
"""

import logging
from collections.abc import Mapping

from agent.config import Domain as Settings
from agent.errors import HoldfastError, ModelError, NotThere
from agent.inference.catalog import Catalog, Model
from agent.inference.domains.candidate import Refused
from agent.inference.domains.choices import Choice, Choices

log = logging.getLogger("domain")
_LS = "holdfast models ls"
STARTS_MAX = 2  # of a version whose process ends before it is proved; then it is another's turn


class Versions:
    """Looks at the catalog; slow, for a thread."""

    def __init__(self, catalog: Catalog, choices: Choices, needed: str | None = None) -> None:
        """`needed` is a model that always is to serve."""
        self._catalog = catalog
        self._choices = choices
        self._needed = needed

    def wanted(self, settings: Settings) -> list[str]:
        """The models of a domain, without those that were unloaded; all, if all were."""
        unloaded = {name for name in settings.models if self._unloaded(name)}
        return [name for name in settings.models if name not in unloaded] or settings.models

    def best(self, name: str, settings: Settings, refused: Mapping[str, str]) -> tuple[Model, str]:
        """The first version that may serve; why not one before it. Raises ModelError."""
        first: ModelError | None = None
        for version in self._in_turn(name):
            try:
                model = self.admitted(name, version, settings)
                if why := refused.get(model.label):
                    raise ModelError(why)
            except ModelError as error:
                log.debug("%s", error)
                first = first or error
            else:
                return model, str(first or "")
        raise first or ModelError(f"model {name}: no version of it may serve", "")

    def asked(self, name: str, version: int | None, settings: Settings) -> Model:
        """As `admitted`; one that is not there raises NotThere."""
        self.there(name, version)
        return self.admitted(name, version, settings)

    def there(self, name: str, version: int | None) -> None:
        """Whether there is such a version on the disk; None: any. Raises NotThere, ModelError."""
        known = self._catalog.versions(name)
        if not known or version not in (None, *known):
            which = "no version" if version is None else f"no version {version}"
            said = f": there are {', '.join(map(str, known))}" if known else ""
            raise NotThere(f"there is {which} of model {name!r} on the disk{said}", _LS)

    def admitted(self, name: str, version: int | None, settings: Settings) -> Model:
        """A version that is whole and signed, for this engine, with operators its last device has.

        None: the newest. Raises ModelError.
        """
        model = self._catalog.verified(name, version)
        self.suits(model, settings)
        return model

    def suits(self, model: Model, settings: Settings) -> None:
        """Whether it is for the engine of a domain, and its last device. Raises ModelError."""
        if model.manifest.engine != (settings.engine or model.manifest.engine):
            raise ModelError(
                f"{model.label} is for the engine {model.manifest.engine}, and its domain runs "
                f"{settings.engine}",
                f"`engine: {settings.engine}` in its model.yaml if it is such a model; or another "
                "model in the domain",
            )
        self._catalog.check(model, settings.devices[-1])

    def _in_turn(self, name: str) -> list[int | None]:
        """The versions in the order in which they are tried: chosen, the one before, newest."""
        choice = self._choices.of(name)
        first = [choice.version, choice.previous] if choice else []
        rest = [*first, *self._catalog.claimed(name)]
        return list(dict.fromkeys(one for one in rest if one is not None)) or [None]

    def _unloaded(self, name: str) -> bool:
        choice: Choice | None = self._choices.of(name)
        return choice is not None and choice.unloaded and name != self._needed


class Beginning:
    """What one domain starts with: of each model the first version that is not refused."""

    def __init__(self, versions: Versions, settings: Settings) -> None:
        self.instead: dict[str, str] = {}  # model -> why a version that comes first does not serve
        self._versions = versions
        self._settings = settings
        self._failed: dict[str, int] = {}  # label -> how often its process ended
        self._refused: dict[str, str] = {}  # label -> why

    def choose(self) -> dict[str, Model]:
        """The models to start with. Raises ModelError for one of which no version may serve."""
        models, instead = dict[str, Model](), dict[str, str]()
        for name in self._versions.wanted(self._settings):
            models[name], why = self._versions.best(name, self._settings, self._refused)
            if why:
                instead[name] = why
        self.instead = instead
        return models

    def refused(self, error: HoldfastError) -> None:
        """A start failed for this reason."""
        if not isinstance(error, Refused):  # nothing is left, or never was: it may be mended
            self._failed.clear()
            self._refused.clear()
            return
        for label in error.labels:
            self._failed[label] = self._failed.get(label, 0) + 1
            if error.surely or self._failed[label] >= STARTS_MAX:
                self._refused[label] = str(error)

"""The file of --config: what it says now, and as a new version where it was changed."""

from pathlib import Path

from agent import config_file
from agent.config import Config, Store
from agent.errors import ConfigError
from agent.versions.folder import digest
from agent.versions.forms import Trial, Version
from agent.versions.kept import Kept
from agent.yaml_tree import tree


class File:
    """As it is now; nothing is written to it, ever."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.document = b""
        self.digest = ""
        self._fault: ConfigError | None = None
        self._settings: Config | None = None
        try:
            self.document = config_file.read(path)
            self.digest = digest(self.document)
        except ConfigError as error:
            self._fault = error

    def settings(self) -> Config:
        """What it says. Raises ConfigError."""
        self.check()
        if self._settings is None:
            self._settings = config_file.parse(self.document, self.path)
        return self._settings

    def check(self) -> None:
        """Raises ConfigError where it cannot be read."""
        if self._fault:
            raise self._fault

    def store_folder(self) -> Path:
        """That of its `store.path`. Raises ConfigError."""
        _, value = tree(self.document, self.path)
        store = value.get("store")
        path = store.get("path") if isinstance(store, dict) else None
        return Path(path if isinstance(path, str) else Store().path).parent

    def adopt(self, kept: Kept, *, service: bool) -> bool:
        """Have it as a new version, where it is not as it was seen last; whether it was.

        Of a service it is on trial until the agent has begun on it. Raises ConfigError, StoreFull.
        """
        book = kept.book
        if self.digest == book.file_digest and book.live:
            return False
        self.settings()
        if book.live and book.version(book.live).digest == self.digest:
            kept.seen(self.digest)
            return False
        trial: Trial | str = "the file says so"
        if book.live and service:
            trial = Trial(book.confirmed, "start")
        why = f"{self.path} was changed" if book.live else f"{self.path}, as it was found first"
        kept.add(self.document, Version(0, "", 0, "file", why=why), trial)
        return True

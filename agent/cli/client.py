"""HTTP over the agent's unix socket."""

import http.client
import json
import socket
from pathlib import Path
from typing import Any, Self

from agent import config_file
from agent.errors import AgentUnreachable, HoldfastError

TIMEOUT_S = 10.0


class _Connection(http.client.HTTPConnection):
    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=TIMEOUT_S)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(TIMEOUT_S)
        self.sock.connect(str(self._path))


class Client:
    """Asks the agent that runs on a configuration."""

    def __init__(self, path: Path) -> None:
        self._path = path

    @classmethod
    def of(cls, config: Path) -> Self:
        """For the agent that runs on the configuration file `config`."""
        return cls(Path(config_file.load(config).api.socket))

    def get(self, route: str) -> dict[str, Any]:
        """The document at `route`. Raises AgentUnreachable, or HoldfastError with its refusal."""
        return self._ask("GET", route)

    def post(self, route: str) -> dict[str, Any]:
        """Have `route` done; its answer. Raises as `get` does."""
        return self._ask("POST", route)

    def _ask(self, method: str, route: str) -> dict[str, Any]:
        connection = _Connection(self._path)
        try:
            connection.request(method, route)
            response = connection.getresponse()
            document: dict[str, Any] = json.loads(response.read())
        except PermissionError as error:
            raise HoldfastError(
                f"{self._path}: permission denied: an agent may run, but this user may not ask it",
                "use sudo, or join the group of the socket",
            ) from error
        except (OSError, http.client.HTTPException, json.JSONDecodeError) as error:
            raise AgentUnreachable(
                f"no agent answers on {self._path}: {error}",
                "start it (`holdfast run`, or systemctl start holdfast) and look at its log",
            ) from error
        finally:
            connection.close()
        if "error" in document:
            raise HoldfastError(document["error"], document.get("hint", ""))
        return document

"""HTTP over the agent's unix socket."""

import http.client
import json
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, Self

from agent import config_file
from agent.errors import AgentSilent, AgentUnreachable, HoldfastError
from agent.words import printable

STREAM_TIMEOUT_S = 60.0  # for each step of a long answer: its disk may be slow
TIMEOUT_S = 10.0  # for each step: to be let in, and to be answered


class _Connection(http.client.HTTPConnection):
    def __init__(self, path: Path, timeout_s: float) -> None:
        super().__init__("localhost", timeout=timeout_s)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))


class Refused(HoldfastError):
    """The agent answered that it does not do it; `document` is its whole answer."""

    def __init__(self, document: dict[str, Any]) -> None:
        super().__init__(
            printable(str(document["error"])), printable(str(document.get("hint", "")))
        )
        self.document = document


class Client:
    """Asks the agent that runs on a configuration."""

    def __init__(self, path: Path, timeout_s: float = TIMEOUT_S) -> None:
        self._path = path
        self._timeout_s = timeout_s

    @classmethod
    def of(cls, config: Path, timeout_s: float = TIMEOUT_S) -> Self:
        """For the agent that runs on the configuration file `config`."""
        return cls(Path(config_file.load(config).api.socket), timeout_s)

    def get(self, route: str) -> dict[str, Any]:
        """The document at `route`.

        Raises AgentUnreachable when no agent runs, AgentSilent when one does not answer, Refused
        with the agent's refusal, and HoldfastError when its answer cannot be read.
        """
        return self._ask("GET", route)

    def post(self, route: str, order: dict[str, Any] | None = None) -> dict[str, Any]:
        """Have `route` done, with `order` as what to do; its answer. Raises as `get` does."""
        return self._ask("POST", route, json.dumps(order).encode() if order else None)

    def upload(self, route: str, content: bytes | IO[bytes]) -> dict[str, Any]:
        """As `post`, with `content` as it is; of a file, what lies in it."""
        return self._ask("POST", route, content)

    def delete(self, route: str) -> dict[str, Any]:
        """Have `route` removed; the answer. Raises as `get` does."""
        return self._ask("DELETE", route)

    @contextmanager
    def download(self, route: str, method: str = "POST") -> Iterator[Callable[[int], bytes]]:
        """Have `route` done, and read its long answer: so many bytes at most, b"" at its end.

        Raises as `get` does, the reading too: AgentSilent when the answer ends early.
        """
        connection = _Connection(self._path, STREAM_TIMEOUT_S)
        try:
            self._connect(connection)
            try:
                connection.request(method, route)
                response = connection.getresponse()
                if response.status != http.HTTPStatus.OK:
                    self._document(response.status, response.read())
            except (OSError, http.client.HTTPException) as error:
                raise self._broken_off() from error
            yield lambda size: self._read(response, size)
        finally:
            connection.close()

    def follow(self, route: str) -> Iterator[tuple[str, dict[str, Any]]]:
        """The events at `route`, each with its name, as they come until the agent ends them.

        Raises as `get` does, while they come too: Refused where the agent met a trouble.
        """
        connection = _Connection(self._path, STREAM_TIMEOUT_S)
        try:
            self._connect(connection)
            try:
                connection.request("GET", route)
                response = connection.getresponse()
                if response.status != http.HTTPStatus.OK:
                    self._document(response.status, response.read())
            except (OSError, http.client.HTTPException) as error:
                raise self._broken_off() from error
            yield from self._events(response)
        finally:
            connection.close()

    def _events(self, response: http.client.HTTPResponse) -> Iterator[tuple[str, dict[str, Any]]]:
        name = ""
        while line := self._line(response):
            word, _, said = line.decode(errors="replace").strip().partition(": ")
            if word == "event":
                name = said
            elif word == "data":
                document = self._document(response.status, said.encode())
                yield name, document

    def _line(self, response: http.client.HTTPResponse) -> bytes:
        try:
            return response.readline()
        except (OSError, http.client.HTTPException) as error:
            raise self._broken_off() from error

    def _read(self, response: http.client.HTTPResponse, size: int) -> bytes:
        try:
            return response.read(size)
        except (OSError, http.client.HTTPException) as error:
            raise self._broken_off() from error

    def _broken_off(self) -> AgentSilent:
        return AgentSilent(
            f"the agent on {self._path} ended its answer before it was whole",
            "look at its log, and try again",
        )

    def _ask(
        self, method: str, route: str, content: bytes | IO[bytes] | None = None
    ) -> dict[str, Any]:
        connection = _Connection(self._path, self._timeout_s)
        try:
            self._connect(connection)
            status, body = self._answer(connection, method, route, content)
        finally:
            connection.close()
        return self._document(status, body)

    def _document(self, status: int, body: bytes) -> dict[str, Any]:
        try:
            document = json.loads(body)
        except ValueError:  # no JSON, or no text at all
            document = None
        if not isinstance(document, dict):
            raise self._unreadable(f"with status {status} and no JSON document")
        if "error" in document:
            raise Refused(document)
        return document

    def _connect(self, connection: _Connection) -> None:
        try:
            connection.connect()
        except PermissionError as error:
            raise HoldfastError(
                f"{self._path}: permission denied: an agent may run, but this user may not ask it",
                "use sudo, or join the group of the socket",
            ) from error
        except (TimeoutError, BlockingIOError) as error:  # so many wait already that none may join
            raise self._silent() from error
        except OSError as error:
            raise AgentUnreachable(
                f"no agent answers on {self._path}: {error.strerror or error}",
                "start it (`holdfast run`, or systemctl start holdfast) and look at its log",
            ) from error

    def _answer(
        self,
        connection: _Connection,
        method: str,
        route: str,
        content: bytes | IO[bytes] | None,
    ) -> tuple[int, bytes]:
        """Status and body of the answer."""
        try:
            connection.request(method, route, content)
            response = connection.getresponse()
            return response.status, response.read()
        except TimeoutError as error:
            raise self._silent() from error
        except (OSError, http.client.IncompleteRead) as error:
            raise AgentSilent(
                f"an agent holds {self._path} but ended the connection without an answer",
                "try again: it may be ending, or too many ask at once",
            ) from error
        except http.client.HTTPException as error:
            raise self._unreadable(f"with what is no HTTP ({error!r})") from error

    def _silent(self) -> AgentSilent:
        return AgentSilent(
            f"an agent holds {self._path} but does not answer within {self._timeout_s:g} s "
            "(it may hang)",
            "look at its log; restart it",
        )

    def _unreadable(self, how: str) -> HoldfastError:
        return HoldfastError(
            f"the agent on {self._path} answered {how}, which cannot be read",
            "see that command and agent are of one version, and that no other program serves there",
        )

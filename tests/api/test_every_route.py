"""Every door of a whole agent, once with what it wants: question and answer are as the document
says. A door that has no example fails, so that none is forgotten."""

import http.client
import json
import socket
from collections.abc import Iterator, Mapping
from typing import Any

import pytest

from tests.api import examples
from tests.api.checked import Checker
from tests.api.examples import EXAMPLES
from tests.api.scratch import Scratch
from tests.outside import running


class Walk:
    """Asks an agent over its socket; each exchange is checked."""

    def __init__(self, device: Scratch) -> None:
        self.device = device
        self.count = 0
        self.checker = Checker({"paths": {}, "components": {"schemas": {}}})
        self.checker = Checker(self._sent("GET", "/api/v1/openapi.json", None, {})[3])

    def send(
        self, method: str, url: str, body: Any = None, headers: Mapping[str, str] | None = None
    ) -> tuple[int, Any]:
        """The answer's status and document; a dict goes as JSON."""
        content = json.dumps(body).encode() if isinstance(body, dict) else body
        status, told, answer, document = self._sent(method, url, content, dict(headers or {}))
        self.checker.check(method, url, content, status, told, answer)
        return status, document

    def _sent(
        self, method: str, url: str, content: bytes | None, headers: dict[str, str]
    ) -> tuple[int, Any, bytes, Any]:
        connection = http.client.HTTPConnection("localhost")
        connection.sock = socket.socket(socket.AF_UNIX)
        connection.sock.settimeout(30)
        connection.sock.connect(str(self.device.socket))
        connection.request(method, url, content, headers)
        answer = connection.getresponse()
        events = answer.headers.get_content_type() == "text/event-stream"
        got = _first_event(answer) if events else answer.read()
        connection.close()
        is_json = answer.headers.get_content_type() == "application/json"
        return answer.status, answer.headers, got, json.loads(got) if is_json and got else None


def _first_event(answer: http.client.HTTPResponse) -> bytes:
    """Of a stream that may have no end."""
    lines = [answer.readline()]
    while lines[-1] and not (lines[-1] == b"\n" and lines[-2].startswith(b"data:")):
        lines.append(answer.readline())
    assert lines[-1], f"no event: {lines}"
    return b"".join(lines)


@pytest.fixture(scope="module")
def walk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Walk]:
    device = Scratch(tmp_path_factory.mktemp("agent"))
    with running(device):
        device.settle()
        yield Walk(device)


def operations(document: dict[str, Any]) -> dict[str, tuple[str, str]]:
    """Method and path of each operation."""
    return {
        operation["operationId"]: (method.upper(), path)
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
    }


def test_each_door_has_an_example(walk: Walk) -> None:
    known = operations(walk.checker.document)
    missing = [f"{' '.join(known[name])} ({name})" for name in known.keys() - EXAMPLES.keys()]
    assert not missing, (
        f"write an example into EXAMPLES of {examples.__file__} for: {', '.join(missing)}"
    )
    gone = sorted(EXAMPLES.keys() - known.keys())
    assert not gone, f"EXAMPLES of {examples.__file__} has doors that are not there: {gone}"


@pytest.mark.parametrize("name", EXAMPLES)
def test_a_door_is_as_the_document_says(walk: Walk, name: str) -> None:
    method, path = operations(walk.checker.document)[name]
    for one in EXAMPLES[name]:
        url = path.format_map(one.found(walk)) + (one.query and f"?{one.query}")
        body = one.body(walk) if callable(one.body) else one.body
        headers = one.headers(walk) if callable(one.headers) else one.headers
        status, document = walk.send(method, url, body, headers)
        assert status in (one.status, *one.others), document

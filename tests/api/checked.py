"""Checks what goes through a door against the OpenAPI document: what was asked, what was answered.

What the document does not name is wrong in an answer: a property, a status, a media type. A request
that was done must have been one that the document allows; one that was refused may be anything.
"""

import json
import re
from collections.abc import Mapping
from contextlib import suppress
from copy import deepcopy
from functools import lru_cache
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

import jsonschema
from referencing import Registry, Resource
from referencing.jsonschema import DRAFT202012

PATH = Path(__file__).parents[2] / "docs" / "openapi.json"
BASE = "urn:holdfast"
JSON = "application/json"
EVENTS = "text/event-stream"


class Checker:
    """Of one document."""

    def __init__(self, document: dict[str, Any]) -> None:
        self.document = document
        strict = deepcopy(document)
        for schema in strict["components"]["schemas"].values():
            _close(schema)
        self._asked = Registry().with_resource(f"{BASE}/asked", _resource(document))
        self._answered = Registry().with_resource(f"{BASE}/answered", _resource(strict))
        self._paths = [
            (re.compile(re.sub(r"\\\{\w+\\\}", "([^/]*)", re.escape(path))), path)
            for path in sorted(document["paths"], key=lambda path: path.count("{"))
        ]

    def route(self, method: str, url: str) -> tuple[str, dict[str, Any]] | None:
        """The path and the operation that a request is for; None: there is no such door."""
        method = "get" if method == "HEAD" else method.lower()
        for pattern, path in self._paths:
            if pattern.fullmatch(urlsplit(url).path) and method in self.document["paths"][path]:
                return path, self.document["paths"][path][method]
        return None

    def check(
        self,
        method: str,
        url: str,
        asked: bytes | None,
        status: int,
        headers: Mapping[str, str],
        body: bytes,
        *,
        all_headers: bool = True,
    ) -> None:
        """One exchange. Raises AssertionError with what is not as the document has it.

        Without `all_headers` they are not looked at but for the media type.
        """
        found = self.route(method, url)
        where = f"{method} {url} -> {status}"
        if found is None:
            assert status >= 300, f"{where}: the document has no such door"
            self._refused(where, headers, body)
            return
        path, operation = found
        if status < 300:
            self._request(where, path, operation, url, asked or b"")
        where = f"{where} ({operation['operationId']})"
        answer = self._answer(where, operation, status)
        if all_headers:
            for name, header in answer.get("headers", {}).items():
                assert name in headers or not header["required"], f"{where}: no header {name}"
        if method != "HEAD":
            self._response(where, answer, headers.get("Content-Type", ""), body)

    def check_event(self, url: str, event: dict[str, str]) -> None:
        """One of the events at a door. Raises as `check`."""
        found = self.route("GET", url)
        assert found is not None, f"the document has no {url}"
        schema = found[1]["responses"]["200"]["content"][EVENTS]["schema"]
        self._event(url, schema, event)

    def check_message(self, url: str, text: str) -> None:
        """A text that a WebSocket sent. Raises as `check`."""
        found = self.route("GET", url)
        assert found is not None, f"the document has no {url}"
        form = found[1]["responses"]["101"]["x-messages"]
        self._valid(url, "answered", form, json.loads(text))

    def _request(
        self, where: str, path: str, operation: dict[str, Any], url: str, asked: bytes
    ) -> None:
        split = urlsplit(url)
        names = re.findall(r"\{(\w+)\}", path)
        pattern = next(pattern for pattern, one in self._paths if one == path)
        matched = pattern.fullmatch(split.path)
        assert matched is not None
        given = {("path", k): unquote(v) for k, v in zip(names, matched.groups(), strict=True)}
        given |= {("query", k): v for k, v in parse_qsl(split.query, keep_blank_values=True)}
        named = (p for p in operation.get("parameters", []) if p["in"] != "header")
        known = {(p["in"], p["name"]): p for p in named}
        for key, one in known.items():
            if one["required"]:
                assert key in given, f"{where}: {key[1]} is not given"
        for key, value in given.items():
            assert key in known, f"{where}: the document has no {key[0]} parameter {key[1]}"
            self._valid(f"{where}: {key[1]}", "asked", known[key]["schema"], value, text=True)
        if "requestBody" not in operation:
            assert asked in (b"", b"{}"), f"{where}: the document has no body"
            return
        content = operation["requestBody"]["content"]
        if not asked:
            assert not operation["requestBody"]["required"], f"{where}: a body is needed"
        elif JSON in content and (len(content) == 1 or _is_json(asked)):
            schema = content[JSON]["schema"]
            self._valid(f"{where}: body", "asked", schema, json.loads(asked))

    def _answer(self, where: str, operation: dict[str, Any], status: int) -> dict[str, Any]:
        """What the document says of an answer."""
        answers = operation["responses"]
        assert status >= 300 or str(status) in answers, f"{where}: the document has no such answer"
        answer: dict[str, Any] = answers.get(str(status), answers["default"])
        if "$ref" in answer:
            answer = self.document["components"]["responses"][answer["$ref"].rpartition("/")[2]]
        return answer

    def _response(self, where: str, answer: dict[str, Any], told: str, body: bytes) -> None:
        content = answer.get("content", {})
        kind = told.partition(";")[0]
        assert kind in content or not (content or body), (
            f"{where}: {kind} is not in {list(content)}"
        )
        if kind == JSON:
            schema = content[kind].get("schema", {})
            self._valid(where, "answered", schema, json.loads(body))
        elif kind == EVENTS:
            for event in events_of(body):
                self._event(where, content[kind]["schema"], event)

    def _event(self, where: str, schema: dict[str, Any], event: dict[str, str]) -> None:
        """One of a stream, and the document that it carries."""
        self._valid(where, "answered", schema, event)
        names = [one["properties"]["event"]["const"] for one in schema["oneOf"]]
        form = schema["oneOf"][names.index(event["event"])]["properties"]["data"]
        self._valid(
            f"{where}: {event['event']}",
            "answered",
            form["contentSchema"],
            json.loads(event["data"]),
        )

    def _refused(self, where: str, headers: Mapping[str, str], body: bytes) -> None:
        if body:
            self._valid(
                where, "answered", {"$ref": "#/components/schemas/Problem"}, json.loads(body)
            )

    def _valid(
        self, where: str, side: str, schema: dict[str, Any], value: Any, text: bool = False
    ) -> None:
        registry = self._asked if side == "asked" else self._answered
        rooted = _rooted(schema, f"{BASE}/{side}")
        kind = jsonschema.Draft202012Validator
        values = _readings(value) if text else [value]
        faults = [list(kind(rooted, registry=registry).iter_errors(one)) for one in values]
        if all(faults):
            worst = min(faults, key=len)[0]
            raise AssertionError(f"{where}: at {worst.json_path}: {worst.message[:500]}")


def events_of(body: bytes) -> list[dict[str, str]]:
    """The events of a stream, whose lines have one space after the colon; the last is whole."""
    blocks = [block.splitlines() for block in body.decode().split("\n\n")]
    events = [dict(line.split(": ", 1) for line in b if line[:1] != ":") for b in blocks]
    return [event for event in events if "data" in event]


def _is_json(content: bytes) -> bool:
    """Whether it is, and not JSON with raw tensors behind it, or another kind altogether."""
    with suppress(ValueError):
        return json.loads(content) is not None
    return False


def _readings(text: str) -> list[Any]:
    """What a parameter's text may mean."""
    found: list[Any] = [text]
    if re.fullmatch(r"-?\d+", text):
        found.append(int(text))
    if text in ("true", "false", "True", "False", "1", "0"):
        found.append(text in ("true", "True", "1"))
    return found


def _resource(document: dict[str, Any]) -> Resource[Any]:
    return Resource.from_contents(document, default_specification=DRAFT202012)


def _rooted(schema: Any, base: str) -> Any:
    """With references that begin at the document."""
    if isinstance(schema, dict):
        return {
            key: f"{base}{value}" if key == "$ref" else _rooted(value, base)
            for key, value in schema.items()
        }
    return [_rooted(one, base) for one in schema] if isinstance(schema, list) else schema


def _close(schema: dict[str, Any]) -> None:
    """An object has the properties that are named, and no others."""
    if "properties" in schema:
        schema.setdefault("additionalProperties", False)


@lru_cache
def whole() -> Checker:
    """Of the document that is kept in the repository; a test says that it is the served one."""
    return Checker(json.loads(PATH.read_text()))

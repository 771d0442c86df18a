"""The OpenAPI document: valid, complete, the one that is kept in the repository."""

import json
from typing import Any

import jsonschema
import pytest
import schemathesis
from msgspec import Struct
from schemathesis.specs.openapi.definitions import OPENAPI_31

from agent.api.form import openapi
from agent.api.form.events import events
from agent.api.form.route import Route, get, post
from agent.forms import SCOPES
from tests.api.checked import PATH, Checker
from tests.api.composed import COMMAND, text


@pytest.fixture(scope="module")
def document() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(text())
    return found


def operations(document: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {
        f"{method.upper()} {path}": operation
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
    }


def test_what_is_kept_is_what_is_served() -> None:
    assert PATH.read_text() == text(), f"run: {COMMAND}"


def test_it_is_valid_openapi(document: dict[str, Any]) -> None:
    jsonschema.Draft202012Validator(OPENAPI_31).validate(document)
    for schema in document["components"]["schemas"].values():
        jsonschema.Draft202012Validator.check_schema(schema)
    loaded = schemathesis.openapi.from_dict(document)
    assert len(list(loaded.get_all_operations())) == len(operations(document))


def test_each_operation_says_who_may_what_it_takes_and_what_it_gives(
    document: dict[str, Any],
) -> None:
    for name, one in operations(document).items():
        assert one["summary"].endswith("."), name
        assert "default" in one["responses"], name
        assert any(status.startswith(("1", "2")) for status in one["responses"]), name
        for needed in one["security"]:
            assert set().union(*needed.values()) <= set(SCOPES), name
        for status, answer in one["responses"].items():
            for kind, media in answer.get("content", {}).items():
                loose = kind == "application/json" and media["schema"].keys() <= {"type"}
                assert not loose or name.endswith("/openapi.json"), f"{name} {status}: of any form"


def test_each_schema_says_what_it_is(document: dict[str, Any]) -> None:
    for name, schema in document["components"]["schemas"].items():
        assert "." not in name, f"{name}: two forms have one name: rename one"
        assert schema.get("description"), name


class Asked(Struct, frozen=True):
    """A body."""

    size: int = 1


class Sized(Struct, frozen=True):
    """How large it is."""

    size: int = 1


class Spoken(Struct, frozen=True, tag_field="event", tag="spoken"):
    """A text of a WebSocket."""

    at_s: float


async def nothing(_: Any) -> Any: ...


def test_an_open_door_asks_for_nobody() -> None:
    door = get("/api/v1/open", nothing, "Open.", Asked, scopes=())
    assert operations(openapi.document([door]))["GET /api/v1/open"]["security"] == []


def test_two_doors_of_one_name_are_refused() -> None:
    doors = [get("/api/v1/one/two", nothing, "", Asked), get("/one/two", nothing, "", Asked)]
    with pytest.raises(ValueError, match="get_one_two"):
        openapi.document(doors)


def test_headers_stand_with_what_they_belong_to() -> None:
    door = Route(
        *("POST", "/api/v1/x", nothing, ("infer",), "X.", {202: Asked}),
        **{"body": Asked, "takes": ("Prefer",), "tells": {202: ("Location",)}, "refuses": (503,)},
    )
    whole = openapi.document([door._replace(about="Of x.", query=Sized)])
    found = whole["paths"]["/api/v1/x"]["post"]
    assert [one["in"] for one in found["parameters"]] == ["query", "header"]
    assert "Location" in found["responses"]["202"]["headers"]
    assert found["responses"]["503"] == {"$ref": "#/components/responses/Refused503"}
    assert "Retry-After" in whole["components"]["responses"]["Refused503"]["headers"]
    assert found["description"] == "Of x. The query: how large it is."
    assert found["requestBody"]["required"] is False, "an empty one says all by default"


@pytest.mark.parametrize(
    ("status", "asked", "answer"),
    [
        (200, b'{"size": 1}', b'{"size": "one"}'),
        (200, b'{"size": 1}', b'{"size": 1, "more": 2}'),
        (200, b'{"size": "one"}', b'{"size": 1}'),
        (201, b'{"size": 1}', b'{"size": 1}'),
        (400, b"", b'{"wrong": "no hint"}'),
    ],
)
def test_the_checker_sees_what_is_not_as_the_document_says(
    status: int, asked: bytes, answer: bytes
) -> None:
    checker = Checker(openapi.document([post("/api/v1/x", nothing, "X.", Asked, body=Asked)]))
    headers = {"Content-Type": "application/json"}
    checker.check("POST", "/api/v1/x", b"{}", 200, headers, b'{"size": 3}')
    with pytest.raises(AssertionError):
        checker.check("POST", "/api/v1/x", asked, status, headers, answer)


@pytest.mark.parametrize(
    "event", [b'event: line\ndata: {"size": "one"}', b'event: other\ndata: {"size": 1}']
)
def test_the_checker_sees_an_event_that_is_none_of_the_doors(event: bytes) -> None:
    checker = Checker(openapi.document([get("/api/v1/x", nothing, "X.", events(line=Sized))]))
    about = ("GET", "/api/v1/x", None, 200, {"Content-Type": "text/event-stream"})
    trouble = b'event: trouble\ndata: {"error": "it is ill", "hint": "heal it"}\n\n'
    good = b'retry: 2000\n\n:\n\nevent: line\nid: 7\ndata: {"size": 1}\n\n' + trouble
    checker.check(*about, good)
    with pytest.raises(AssertionError):
        checker.check(*about, event + b"\n\n")


def test_the_checker_sees_what_a_websocket_should_not_send() -> None:
    door = Route("GET", "/api/v1/x", nothing, (), "X.", {101: Spoken})
    checker = Checker(openapi.document([door]))
    checker.check("GET", "/api/v1/x", None, 101, {}, b"")
    checker.check_message("/api/v1/x", '{"event": "spoken", "at_s": 1.5}')
    with pytest.raises(AssertionError):
        checker.check_message("/api/v1/x", '{"event": "spoken"}')


def test_the_checker_misses_a_header() -> None:
    door = Route("GET", "/api/v1/x", nothing, (), "X.", {304: None}, tells={304: ("ETag",)})
    checker = Checker(openapi.document([door]))
    checker.check("GET", "/api/v1/x", None, 304, {"ETag": '"1"'}, b"")
    checker.check("GET", "/api/v1/x", None, 304, {}, b"", all_headers=False)
    with pytest.raises(AssertionError, match="ETag"):
        checker.check("GET", "/api/v1/x", None, 304, {}, b"")

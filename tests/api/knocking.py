"""What schemathesis is told beside the document; it loads this by SCHEMATHESIS_HOOKS."""

from typing import Any
from zlib import crc32

import schemathesis

HANGING, ENDING = "/api/v1/watchdog/test", ("store", "loop")  # these end the agent
SHOWN = ("authorization", "cookie", "holdfast_session")


@schemathesis.check
def no_undocumented_failure(_: Any, response: Any, case: Any) -> None:
    """No 5xx, but for a 503 that the door's document names and that says when to try again."""
    if response.status_code < 500:
        return
    answers = case.operation.definition.raw["responses"]
    assert response.status_code == 503, f"it failed: {response.text}"
    assert "503" in answers, f"a 503 that the document does not name: {response.text}"
    body = response.json()
    assert body.get("status") == "unhealthy" or "retry-after" in response.headers, (
        f"a 503 that does not say when to try again: {response.text}"
    )


@schemathesis.hook
def before_call(_: Any, case: Any, __: Any) -> None:
    """What would keep the doors behind it from being tried."""
    # Who shows unknown tokens again and again is told to wait. test_access.py shows them.
    if crc32(f"{case.path_parameters}{case.query}".encode()) % 50:
        for where in (case.headers, case.cookies):
            for name in [one for one in where or () if one.lower() in SHOWN]:
                del where[name]
    body = case.body
    if case.operation.path == HANGING and isinstance(body, dict) and body.get("part") in ENDING:
        body["part"] = "none of these"

"""What schemathesis is told beside the document; it loads this by SCHEMATHESIS_HOOKS."""

from typing import Any

import schemathesis


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

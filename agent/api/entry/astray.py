"""What is said to a request that no door is for: which path or method there is in its place."""

from collections.abc import Iterable

from aiohttp import web

from agent.api.entry.refusals import refusal
from agent.api.form.route import PLACE

LIST = "/api/v1/openapi.json"
KIN_MAX = 4
SHOWN_CHARS_MAX = 80


def astray(
    request: web.Request, error: web.HTTPException, paths: Iterable[str]
) -> web.StreamResponse:
    """The answer in place of aiohttp's; `paths` are those of the doors, as OpenAPI has them."""
    path = request.path[:SHOWN_CHARS_MAX]
    if isinstance(error, web.HTTPMethodNotAllowed):
        allowed = ", ".join(sorted(error.allowed_methods))
        method = request.method[:SHOWN_CHARS_MAX]
        answer = refusal(405, f"{path} takes no {method}", f"it takes {allowed}; see {LIST}")
        answer.headers["Allow"] = allowed
        return answer
    if isinstance(error, web.HTTPNotFound):
        kin = _kin(request.path, paths)
        meant = f"did you mean {' or '.join(kin)}? " if kin else ""
        return refusal(404, f"there is no {path}", f"{meant}all paths are listed at {LIST}")
    return refusal(error.status, error.reason, f"see {LIST}")


def _kin(path: str, paths: Iterable[str]) -> list[str]:
    """The paths that go on where this one ends, if they are few."""
    asked = path.strip("/").split("/")
    found = {one for one in paths if _goes_on(asked, one.strip("/").split("/"))}
    return sorted(found) if len(found) <= KIN_MAX else []


def _goes_on(asked: list[str], known: list[str]) -> bool:
    """Whether a path has these words, where it has no places, and perhaps more."""
    pairs = zip(asked, known, strict=False)
    return len(asked) <= len(known) and all(PLACE.fullmatch(k) or a == k for a, k in pairs)

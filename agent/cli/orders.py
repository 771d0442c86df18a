"""Ordering something of the agent, and hearing what became of it, while it may begin anew."""

import secrets
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import quote

from agent.errors import AgentUnreachable

if TYPE_CHECKING:
    from agent.cli.client import Client

COMMANDS = "/api/v1/commands"
STEP_S = 30.0  # of waiting, in one request
TIMEOUT_S = STEP_S + 10.0  # of the client that waits so
AWAY_S = 300.0  # for which an agent may be away meanwhile: it may boot its machine anew
RETRY_S = 0.2
T = TypeVar("T")


def order(name: str, args: dict[str, Any], id: str = "") -> dict[str, Any]:
    """An order, with an id by which it can be asked for again."""
    return {"id": id or f"cli-{secrets.token_hex(8)}", "name": name, "args": args}


def given(client: "Client", order: dict[str, Any]) -> dict[str, Any]:
    """Give an order; its result so far. Once it is answered, it outlasts the agent.

    Raises as the client does: Refused where it is not taken.
    """
    return client.post(COMMANDS, order)


def later(client: "Client", order: dict[str, Any], wait_s: float = STEP_S) -> dict[str, Any]:
    """The result of one that was given: at its end, or after `wait_s` as far as it is; over
    restarts of the agent. Raises as `patiently`."""
    return patiently(lambda: client.get(f"{route(order['id'])}?wait_s={wait_s}"))


def ended(client: "Client", order: dict[str, Any]) -> dict[str, Any]:
    """Give an order; its last result. Raises as `given`, and as `later`."""
    result = given(client, order)
    while not over(result):
        result = later(client, order)
    return result


def route(command: str) -> str:
    """Where one is asked for by its id."""
    return f"{COMMANDS}/{quote(command, safe='')}"


def over(result: dict[str, Any]) -> bool:
    """Whether that is the last word."""
    return result["state"] not in ("accepted", "running")


def patiently(ask: Callable[[], T]) -> T:
    """Ask an agent that may begin anew meanwhile. Raises AgentUnreachable after AWAY_S."""
    until_s = time.monotonic() + AWAY_S
    while True:
        try:
            return ask()
        except AgentUnreachable:
            if time.monotonic() > until_s:
                raise
            time.sleep(RETRY_S)

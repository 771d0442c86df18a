"""Doors on the loop that the agent runs on."""

from collections.abc import Callable

import uvloop


def pytest_asyncio_loop_factories() -> dict[str, Callable[[], uvloop.Loop]]:
    """The loop that the agent runs on."""
    return {"uvloop": uvloop.new_event_loop}

"""The agent's side of the root daemon."""

import asyncio
from pathlib import Path

import msgspec

from agent.errors import HoldfastError
from agent.host.root.forms import ANSWER_BYTES_MAX, Done, Order, answer_of, line_of

TIMEOUT_S = 25.0  # longer than the daemon gives a program


class RootUnreachable(HoldfastError):
    """The root daemon does not answer."""


class RootRefused(HoldfastError):
    """The root daemon answered that it does not do it."""


class Root:
    """Asks the daemon behind a socket."""

    def __init__(self, path: Path | None, timeout_s: float = TIMEOUT_S) -> None:
        """None: there is to be no such daemon."""
        self._path = path
        self._timeout_s = timeout_s

    async def ask(self, order: Order) -> str:
        """Have it done; in words, what was. Raises RootUnreachable, RootRefused."""
        if self._path is None:
            raise RootUnreachable(
                "no root daemon is configured",
                "set watchdog.root_socket, and have holdfast-root run (docs/watchdog.md)",
            )
        try:
            async with asyncio.timeout(self._timeout_s):
                answered = await self._exchange(self._path, line_of(order))
            answer = answer_of(answered)
        except TimeoutError as error:
            raise self._silent(f"within {self._timeout_s:g} s") from error
        except OSError as error:
            raise RootUnreachable(
                f"no root daemon answers on {self._path}: {error.strerror or error}",
                "systemctl status holdfast-root.socket; is this user its group?",
            ) from error
        except (ValueError, msgspec.MsgspecError) as error:  # too long, cut off, or no answer
            raise self._silent(f"with what can be read: {error}") from error
        if isinstance(answer, Done):
            return answer.done
        raise RootRefused(answer.error, answer.hint)

    async def _exchange(self, path: Path, line: bytes) -> bytes:
        reader, writer = await asyncio.open_unix_connection(str(path), limit=ANSWER_BYTES_MAX)
        try:
            writer.write(line)
            await writer.drain()
            return await reader.readline()
        finally:
            writer.close()

    def _silent(self, how: str) -> RootUnreachable:
        return RootUnreachable(
            f"the root daemon on {self._path} does not answer {how}",
            "journalctl -u holdfast-root",
        )

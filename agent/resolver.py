"""Names for HTTP, looked up where a name server that hangs holds nobody up (threads.py)."""

import socket

from aiohttp.abc import AbstractResolver, ResolveResult

from agent.threads import apart


class Resolver(AbstractResolver):
    """The system's own way, each question in a thread of its own."""

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        """The addresses of a name."""
        found = await apart(
            lambda: socket.getaddrinfo(host, port, family=family, type=socket.SOCK_STREAM)
        )
        flags = socket.AI_NUMERICHOST | socket.AI_NUMERICSERV
        return [
            ResolveResult(
                hostname=host,
                host=str(address[0]),
                port=int(address[1]),
                family=of,
                proto=proto,
                flags=flags,
            )
            for of, _, proto, _, address in found
        ]

    async def close(self) -> None:
        """Nothing is open."""

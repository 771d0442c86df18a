"""The device's certificate, renewed over the link that it serves (docs/identity.md)."""

from typing import Annotated, Any

from msgspec import Meta, Struct

from agent.commands.verb import Call, NoArgs, Verb
from agent.identity.pair import CERTIFICATE_BYTES_MAX, Shown
from agent.identity.rotation import WINDOW_S, Rotation

LANE = "identity"
WINDOW_S_MAX = 3600.0
SWITCHED = "switched"
_SURPLUS_S = 60.0  # beside the window: the link's end, the disk


class Install(Struct, frozen=True, forbid_unknown_fields=True):
    """`certificate`: PEM, the device's first, then those between it and its authority. If the link
    is not up with it within `window_s`, the former one is taken back."""

    certificate: Annotated[str, Meta(max_length=CERTIFICATE_BYTES_MAX)]
    window_s: Annotated[float, Meta(ge=10, le=WINDOW_S_MAX)] = WINDOW_S


class Identity:
    """The verbs of the device's certificate."""

    def __init__(self, rotation: Rotation, device: str) -> None:
        self._rotation = rotation
        self._device = device

    def verbs(self) -> list[Verb[Any]]:
        """Both; `certificate.install` is grave."""
        return [
            Verb(
                "certificate.request",
                "Make a new key, and ask for a certificate for it (PKCS#10).",
                NoArgs,
                self._request,
                scope="admin",
                lane=LANE,
                resume=self._request,
            ),
            Verb(
                "certificate.install",
                "Use a new certificate, and take the former one back if the link stays away.",
                Install,
                self._install,
                scope="admin",
                lane=LANE,
                timeout_s=WINDOW_S_MAX + _SURPLUS_S,
                resume=self._resume,
                grave=True,
            ),
        ]

    async def _request(self, _: NoArgs, call: Call) -> dict[str, Any]:
        return {"device": self._device, "csr": await self._rotation.request()}

    async def _install(self, args: Install, call: Call) -> dict[str, Any]:
        certificate = args.certificate.encode()
        await self._rotation.check(certificate)
        await call.note("checked")
        return await self._switch(args, call)

    async def _switch(self, args: Install, call: Call) -> dict[str, Any]:
        certificate = args.certificate.encode()
        await self._rotation.switch(certificate)
        await call.note(SWITCHED)
        return _told(await self._rotation.outcome(certificate, args.window_s))

    async def _resume(self, args: Install, call: Call) -> dict[str, Any]:
        if call.step == SWITCHED:
            certificate = args.certificate.encode()
            return _told(await self._rotation.outcome(certificate, args.window_s))
        return await self._install(args, call) if not call.step else await self._switch(args, call)


def _told(found: Shown) -> dict[str, Any]:
    return found._asdict()

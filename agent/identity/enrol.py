"""Enrolment at the device: its key is made here, and one signed file of the office is taken.

Limits  : ENROLMENT_BYTES_MAX of the file.
Format  : the folder `identity` beside the store, mode 0700, of the store's owner: `device.pem` (key
          and certificate), `authority.pem`, `tuf-root.json`, and `enrolment` as it came.
Recovery: each file is replaced as a whole; taking the same enrolment again ends what was begun. The
          key is the last: until then the device shows what it showed before.

It runs with or without an agent; one that runs takes the pair at its next connection.
"""

import os
from pathlib import Path
from typing import Any

from agent import whole_file
from agent.config import Config
from agent.errors import NotThere, RequestError
from agent.identity import checks
from agent.identity.pair import Pair, Shown
from agent.known_time import KnownTime
from agent.protocol.enrolment import Enrolment, decode

MQTT = "mqtt:"  # whoever gives orders has content, too; until another source is named
Lines = dict[tuple[str, ...], Any]  # of the configuration: key, value


class Place:
    """The device's identity on its disk. All of it blocks, and raises OSError."""

    def __init__(self, settings: Config) -> None:
        """`settings` name the store, beside which it lies."""
        self._settings = settings
        self.folder = Path(settings.store.path).absolute().parent / "identity"
        self.pair = Pair(self.folder / "device.pem")
        self.authority_file = self.folder / "authority.pem"
        self.tuf_root_file = self.folder / "tuf-root.json"

    def request(self, device: str) -> str:
        """A certificate's request for this device, in PEM. Raises RequestError, NotNow."""
        if self._settings.device_id not in (None, device):
            raise RequestError(
                f"device_id is {self._settings.device_id} in the configuration, and not {device}",
                "ask for that one, or change device_id",
            )
        self._make_folder()
        return self.pair.request(device)

    def take(self, content: bytes, believed: str | None, known: KnownTime) -> tuple[Shown, Lines]:
        """Put an enrolment's files in place; what the configuration has to say from now on.

        `believed` is the public key that somebody names as the office's; without one, it has to be
        of bundle.fleet_keys. Raises ProtocolError, RequestError, NotNow where nothing was changed.
        """
        enrolment, by = decode(content)
        keys = [believed] if believed else self._settings.bundle.fleet_keys
        if by not in keys:
            raise RequestError(
                f"the enrolment is signed by {by}, and nobody has said that this is the office",
                "compare it with what `holdfast-fleet bundle key` says there, then: --by KEY",
            )
        if self._settings.device_id not in (None, enrolment.device):
            raise RequestError(
                f"the enrolment is for {enrolment.device}, and this device is "
                f"{self._settings.device_id}",
                "take the file of this device",
            )
        self._make_folder()
        self._install(enrolment, known)
        self._put(self.folder / "enrolment", content)
        return self.pair.shown(), self._lines(enrolment)

    def _install(self, enrolment: Enrolment, known: KnownTime) -> None:
        certificate, authority = enrolment.certificate.encode(), enrolment.authority.encode()
        serves = self._serves(certificate)
        if not serves:
            found = checks.read(authority)
            checks.checked(certificate, self.pair, enrolment.device, found, known)
        self._put(self.authority_file, authority)
        if enrolment.tuf_root:
            self._put(self.tuf_root_file, enrolment.tuf_root.encode())
        if not serves:
            self.pair.switch(certificate, on_trial=False)
        self.pair.keep()

    def _serves(self, certificate: bytes) -> bool:
        """Whether it is the one in use: the enrolment was taken before."""
        try:
            return self.pair.is_of(checks.read(certificate)[0])
        except NotThere:
            return False

    def _lines(self, enrolment: Enrolment) -> Lines:
        lines: Lines = {
            ("device_id",): enrolment.device,
            ("link", "ca_file"): str(self.authority_file),
            ("link", "cert_file"): str(self.pair.path),
        }
        if enrolment.broker_url:
            lines["link", "broker_url"] = enrolment.broker_url
        if enrolment.topic_prefix:
            lines["link", "topic_prefix"] = enrolment.topic_prefix
        if enrolment.fleet_keys:
            lines["bundle", "fleet_keys"] = enrolment.fleet_keys
        if enrolment.command_keys:
            lines["commands", "keys"] = enrolment.command_keys
        if enrolment.tuf_root:
            lines["updates", "root_file"] = str(self.tuf_root_file)
            if not self._settings.updates.urls:
                lines["updates", "urls"] = [MQTT]
        return lines

    def _put(self, path: Path, content: bytes) -> None:
        whole_file.replace(path, content, whole_file.private(path))

    def _make_folder(self) -> None:
        self.folder.parent.mkdir(parents=True, exist_ok=True)
        if not self.folder.exists():
            self.folder.mkdir(mode=0o700)
            if os.geteuid() == 0:
                owner = self.folder.parent.stat()
                os.chown(self.folder, owner.st_uid, owner.st_gid)

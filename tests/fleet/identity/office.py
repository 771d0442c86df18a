"""An authority, the broker that ships, and whoever connects to it."""

import ssl
import threading
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

import paho.mqtt.client as mqtt
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.subscribeoptions import SubscribeOptions

from fleet.identity import authority
from fleet.identity.authority import Authority, Role
from tests.outside import _USER, ROOT, Mosquitto, free_port, until

SHIPPED = ROOT / "provisioning" / "broker"
PLACE = "/etc/mosquitto/holdfast"
WATCHER = "watcher"  # a certificate of the test's own, which may do everything


class Office:
    """An authority in a folder, and what it issues."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "office"
        there = self.folder.exists()  # made by the command
        self.authority = Authority(self.folder) if there else Authority.made(self.folder, "Hold")

    def pair(self, name: str, role: Role = "device", *hosts: str) -> tuple[Path, Path]:
        """A certificate and its key."""
        key, files = authority.new_key(), (self.folder / f"{name}.crt", self.folder / f"{name}.key")
        files[0].write_bytes(self.authority.issue(name, role, key, hosts=hosts))
        files[1].write_bytes(authority.key_pem(key))
        files[1].chmod(0o644)  # mosquitto gives up root before it reads it
        return files


class ShippedBroker(Mosquitto):
    """Mosquitto on the configuration that ships: no line differs but for places and the port."""

    def __init__(self, folder: Path, office: Office) -> None:
        self._place = folder / "broker"
        self._place.mkdir()
        self._office = office
        port = free_port()
        super().__init__(folder, port)
        self.url = f"mqtts://127.0.0.1:{port}"
        told = (SHIPPED / "mosquitto.conf").read_text()
        for shipped, here in (
            ("listener 8883\n", f"listener {port} 127.0.0.1\n"),
            (PLACE, str(self._place)),
            ("/var/lib/mosquitto/", f"{self._place}/"),
            ("log_dest syslog", f"log_dest file {self._place}/log"),
        ):
            assert shipped in told
            told = told.replace(shipped, here)
        self._config.write_text(told + _USER)
        acl = (SHIPPED / "acl").read_text() + f"\nuser {WATCHER}\ntopic readwrite #\n"
        (self._place / "acl").write_text(acl)
        (self._place / "acl").chmod(0o600)
        certificate, key = office.pair("broker", "broker", "127.0.0.1", "localhost")
        (self._place / "broker.crt").write_bytes(certificate.read_bytes())
        (self._place / "broker.key").write_bytes(key.read_bytes())
        (self._place / "authority.crt").write_bytes(office.authority.pem)
        self.take_list()

    def take_list(self) -> None:
        """Bring it what is revoked, and have it read that."""
        content = office_list(self._office)
        (self._place / "revoked.crl").write_bytes(content)
        self.reload()

    def said(self, words: str) -> int:
        """How often its log says this."""
        log = self._place / "log"
        return log.read_text(errors="replace").count(words) if log.exists() else 0


def office_list(office: Office) -> bytes:
    return office.authority.revoked_file.read_bytes()


class Client:
    """Somebody at the broker, by his certificate; use it with `with`, or ask if it `enters`."""

    def __init__(
        self,
        broker: Mosquitto,
        trust: Path,
        pair: tuple[Path, Path] | None,
        *,
        client_id: str = "",
        will: str | None = None,
        session_s: int = 0,
        version: MQTTProtocolVersion = MQTTProtocolVersion.MQTTv5,
    ) -> None:
        self.got: list[tuple[str, bytes]] = []
        self.refused: set[str] = set()  # topics, by the broker's word
        self.ended: list[Any] = []
        self._answers: dict[int, Any] = {}
        self._answered = threading.Event()
        self._session_s = session_s
        self._port = broker.port
        clean = None if version == MQTTProtocolVersion.MQTTv5 else not session_s
        self._client = mqtt.Client(
            CallbackAPIVersion.VERSION2,
            client_id or uuid.uuid4().hex,
            protocol=version,
            clean_session=clean,
            reconnect_on_failure=False,
        )
        context = ssl.create_default_context(cafile=str(trust))
        if pair:
            context.load_cert_chain(*map(str, pair))
        self._client.tls_set_context(context)
        if will:
            self._client.will_set(will, b"gone", 1)
        self._client.on_message = lambda _c, _u, m: self.got.append((m.topic, bytes(m.payload)))
        self._client.on_publish = self._on_publish
        self._client.on_disconnect = lambda _c, _u, _f, code, _p: self.ended.append(code)

    def __enter__(self) -> Self:
        self._connect()
        until(lambda: self._client.is_connected() or self.ended, "the broker answers")
        assert self._client.is_connected(), self.ended
        return self

    def __exit__(self, *_: object) -> None:
        self._client.disconnect()
        self._client.loop_stop()

    def enters(self) -> bool:
        """Whether the broker lets it in."""
        try:
            self._connect()
        except OSError:  # the handshake
            return False
        try:
            until(lambda: self._client.is_connected() or self.ended, "the broker answers")
            return self._client.is_connected()
        finally:
            self.__exit__()

    def _connect(self) -> None:
        properties = None
        if self._client._protocol == MQTTProtocolVersion.MQTTv5:
            properties = Properties(PacketTypes.CONNECT)
            properties.SessionExpiryInterval = self._session_s
        first: Any = self._session_s == 0 if properties else mqtt.MQTT_CLEAN_START_FIRST_ONLY
        self._client.connect("127.0.0.1", self._port, 60, clean_start=first, properties=properties)
        self._client.loop_start()

    def drop(self) -> None:
        """Go without a word."""
        sock = self._client.socket()
        assert sock is not None
        sock.shutdown(2)
        until(lambda: self.ended, "the connection ends")
        self._client.loop_stop()

    def subscribe(self, *topics: str) -> None:
        """And wait for the broker's word, whatever it is."""
        done = threading.Event()
        self._client.on_subscribe = lambda *_: done.set()
        v5 = self._client._protocol == MQTTProtocolVersion.MQTTv5
        self._client.subscribe([(topic, SubscribeOptions(1) if v5 else 1) for topic in topics])
        assert done.wait(30)

    def publish(self, *topics: str, retain: bool = False, payload: bytes = b"x") -> None:
        """To each, and wait for the broker's word on each; `refused` has those it refused."""
        self._answers.clear()
        out = {}
        for topic in topics:
            out[self._client.publish(topic, payload, 1, retain).mid] = topic
        until(lambda: set(out) <= set(self._answers), "the broker answers each")
        self.refused = {out[mid] for mid in out if self._answers[mid].is_failure}

    def _on_publish(self, _c: Any, _u: Any, mid: int, code: Any, _p: Any) -> None:
        self._answers[mid] = code

    def has(self, question: Callable[[list[str]], bool], what: str) -> None:
        """Wait until the topics that came are so."""
        until(lambda: question([topic for topic, _ in self.got]), what)

    @property
    def topics(self) -> set[str]:
        """Of what came."""
        return {topic for topic, _ in self.got}

"""The Mosquitto configuration that ships: each sees and says what is his, nobody else enters."""

import socket
import ssl
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from paho.mqtt.enums import MQTTProtocolVersion

from fleet.identity.authority import Authority
from tests.fleet.identity.office import WATCHER, Client, Office, ShippedBroker
from tests.outside import running, until
from tests.sync.authority import Authority as Loose

# paho leaves the socket of a failed handshake to the garbage collector.
pytestmark = pytest.mark.filterwarnings(
    "ignore:.*ssl.SSLSocket:pytest.PytestUnraisableExceptionWarning"
)
ME, OTHER = "press-7", "press-8"
SAYS = [
    *("presence", "heartbeat", "up/a.segments", "blob/a.segments", "blob-ask", "content-ask"),
    *("result", "result/lab", "twin/reported"),
]
HEARS = ["ack", "blob-grant", "content", "cmd", "twin/desired"]
FOREIGN = ["plant", "holdfast/v1", "holdfast/v1/press-7", "holdfast/v2/press-7/up/a"]


def below(device: str, doors: list[str]) -> set[str]:
    return {f"holdfast/v1/{device}/{door}" for door in doors}


ALL = below(ME, SAYS + HEARS) | below(OTHER, SAYS + HEARS) | set(FOREIGN)
BOTH = {ME, OTHER}
INGEST_HEARS = ["presence", "heartbeat", "up/a.segments", "blob/a.segments", "blob-ask"]
LEADS = ["result", "result/lab", "twin/reported", "content-ask", "presence", "heartbeat"]
MAY_WRITE = {
    ME: below(ME, SAYS),
    "ingest": set().union(*(below(one, ["ack", "blob-grant"]) for one in BOTH)),
    "controller": set().union(*(below(one, ["cmd", "twin/desired", "content"]) for one in BOTH)),
}
MAY_READ = {
    ME: below(ME, HEARS),
    "ingest": set().union(*(below(one, INGEST_HEARS) for one in BOTH)),
    "controller": set().union(*(below(one, LEADS) for one in BOTH)),
}
ROLES = {ME: "device", "ingest": "ingest", "controller": "controller"}
SENTINEL = "end"


@pytest.fixture
def office(tmp_path: Path) -> Office:
    return Office(tmp_path)


@pytest.fixture
def broker(tmp_path: Path, office: Office) -> Iterator[ShippedBroker]:
    found = ShippedBroker(tmp_path, office)
    with running(found):
        yield found


@pytest.fixture
def watcher(broker: ShippedBroker, office: Office) -> Iterator[Client]:
    """Sees all that the broker let through."""
    pair = office.pair(WATCHER)
    with Client(broker, office.authority.certificate_file, pair) as found:
        found.subscribe("#")
        yield found


def enter(broker: ShippedBroker, office: Office, name: str, **options: object) -> Client:
    pair = office.folder / f"{name}.crt", office.folder / f"{name}.key"
    if not pair[0].exists():
        pair = office.pair(name, ROLES.get(name, "device"))  # type: ignore[arg-type]
    return Client(broker, office.authority.certificate_file, pair, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ROLES)
def test_each_publishes_what_is_his_and_nothing_else(
    name: str, broker: ShippedBroker, office: Office, watcher: Client
) -> None:
    for retain in (False, True):
        watcher.got.clear()
        with enter(broker, office, name) as one:
            one.publish(*sorted(ALL), retain=retain)
            assert one.refused == ALL - MAY_WRITE[name], "and he is told"
        watcher.publish(SENTINEL)
        watcher.has(lambda got: SENTINEL in got, "all before it came")
        assert watcher.topics - {SENTINEL} == MAY_WRITE[name]
    watcher.got.clear()
    watcher.subscribe("#")
    watcher.publish(SENTINEL)
    watcher.has(lambda got: SENTINEL in got, "what is retained came before it")
    assert watcher.topics - {SENTINEL} == MAY_WRITE[name]


@pytest.mark.parametrize("name", ROLES)
def test_each_hears_what_is_his_and_nothing_else(
    name: str, broker: ShippedBroker, office: Office, watcher: Client
) -> None:
    """However he subscribes; what was retained before, and what comes after."""
    end = max(MAY_READ[name])
    watcher.publish(*sorted(ALL - {end}), retain=True, payload=b"before")
    for asked in (
        ["#"],
        ["holdfast/v1/+/+", "holdfast/v1/+/+/+", "+/+/+"],
        sorted(ALL),
        ["$share/holdfast/holdfast/v1/#"],
    ):
        with enter(broker, office, name) as one:
            one.subscribe(*asked)
            watcher.publish(*sorted(ALL), payload=b"after")
            watcher.publish(end, payload=b"end")
            until(lambda one=one: (end, b"end") in one.got, "all before it came")
            assert {topic for topic, said in one.got if said == b"after"} == MAY_READ[name], asked
            before = {topic for topic, said in one.got if said == b"before"}
            assert before <= MAY_READ[name], asked
            if not asked[0].startswith("$share"):  # not every broker gives these what was retained
                assert before == MAY_READ[name] - {end}, asked


def test_the_broker_says_of_one_that_went_what_he_might_have_said_himself(
    broker: ShippedBroker, office: Office, watcher: Client
) -> None:
    own, others = (f"holdfast/v1/{one}/presence" for one in (ME, OTHER))
    for topic in (others, own):
        try:
            with enter(broker, office, ME, will=topic) as one:
                one.drop()
        except AssertionError:
            assert topic == others, "a broker may refuse him at once"
    watcher.has(lambda got: own in got, "his own last word")
    assert watcher.topics == {own}


def test_nobody_takes_over_anothers_session(broker: ShippedBroker, office: Office) -> None:
    """Whatever client id he names, in whichever version: what waits for the other waits on."""
    cmd = f"holdfast/v1/{ME}/cmd"
    with enter(broker, office, ME, session_s=600) as mine:
        mine.subscribe(cmd)
    with enter(broker, office, "controller") as controller:
        controller.publish(cmd, payload=b"wait")
    for name in (ME, f"holdfast-{ME}"):
        for version in (MQTTProtocolVersion.MQTTv5, MQTTProtocolVersion.MQTTv311):
            options = {"client_id": name, "session_s": 600, "version": version}
            with enter(broker, office, OTHER, **options) as thief:
                thief.subscribe(f"holdfast/v1/{OTHER}/cmd", cmd)
                with enter(broker, office, "controller") as controller:
                    controller.publish(f"holdfast/v1/{OTHER}/cmd", payload=b"his")
                thief.has(bool, "his own")
                assert thief.topics == {f"holdfast/v1/{OTHER}/cmd"}
    with enter(broker, office, ME, session_s=600) as mine:
        mine.has(lambda got: cmd in got, "what waited")
        with enter(broker, office, OTHER, client_id=ME) as thief:
            thief.publish(f"holdfast/v1/{OTHER}/heartbeat")
            mine.publish(f"holdfast/v1/{ME}/heartbeat")
            assert not mine.ended, "nobody ended it"


def test_who_has_no_good_certificate_does_not_enter(
    tmp_path: Path, broker: ShippedBroker, office: Office
) -> None:
    trust = office.authority.certificate_file
    others = Authority.made(tmp_path / "other", "Holdfast")
    foreign = Office.__new__(Office)
    foreign.folder, foreign.authority = tmp_path / "other", others
    for pair, who in (
        (None, "without one"),
        (foreign.pair(ME), "of another authority of the same name"),
        (Loose(tmp_path, "loose").issue(ME), "of any authority"),
        (office.pair("hall", "broker", "hall"), "a broker's, which is for servers"),
    ):
        assert not Client(broker, trust, pair).enters(), who
    assert enter(broker, office, ME).enters()


def test_a_revoked_certificate_enters_no_more(broker: ShippedBroker, office: Office) -> None:
    trust = office.authority.certificate_file
    former = office.pair(ME)
    copied = tuple(one.rename(one.with_name(f"former-{one.name}")) for one in former)
    assert Client(broker, trust, copied).enters()  # type: ignore[arg-type]
    office.authority.revoke(ME)
    broker.take_list()
    until(lambda: not Client(broker, trust, copied).enters(), "it is refused")  # type: ignore[arg-type]
    assert Client(broker, trust, office.pair(ME)).enters(), "another one of that name is not"
    assert enter(broker, office, OTHER).enters()
    assert not broker.dead()


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_a_revoked_certificate_resumes_no_session(
    version: ssl.TLSVersion, broker: ShippedBroker, office: Office
) -> None:
    """TLS shows no certificate anew in a session that it resumes."""
    context = ssl.create_default_context(cafile=str(office.authority.certificate_file))
    context.load_cert_chain(*map(str, office.pair(ME)))
    context.minimum_version = context.maximum_version = version

    def hello(session: ssl.SSLSession | None) -> tuple[ssl.SSLSession | None, bytes]:
        """The session, and the broker's answer to CONNECT."""
        plain = socket.create_connection(("127.0.0.1", broker.port))
        with context.wrap_socket(plain, server_hostname="127.0.0.1", session=session) as line:
            line.sendall(b"\x10\x0f\x00\x04MQTT\x04\x02\x00\x3c\x00\x03abc")
            answer = line.recv(4)
            return line.session, answer

    session, answer = hello(None)
    assert answer == b"\x20\x02\x00\x00"
    assert hello(session)[1] == answer
    office.authority.revoke(ME)
    broker.take_list()

    def refused() -> bool:
        try:
            return hello(session)[1] != answer
        except OSError:
            return True

    until(refused, "it is refused")


def test_a_list_of_the_revoked_shuts_nobody_out_by_its_age(office: Office) -> None:
    from cryptography import x509

    found = x509.load_pem_x509_crl(office.authority.revoked_file.read_bytes())
    assert found.next_update_utc is not None
    assert found.next_update_utc > datetime.now(UTC) + timedelta(days=7000)

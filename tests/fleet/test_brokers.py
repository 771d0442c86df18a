"""The ingest at brokers that are not as it would like them: MQTT 3.1.1, a password, TLS."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.fleet.process import IngestProcess, Line
from tests.fleet.sender import Sender
from tests.fleet.test_ingest import ask, metric, seqs
from tests.outside import ROOT, Mosquitto, free_port, program, running, until

AMQTT = """
import asyncio, sys
from agent.sync import broker
asyncio.run(broker._serve(int(sys.argv[1])))
"""


@contextmanager
def amqtt(port: int) -> Iterator[None]:
    """A broker that speaks MQTT 3.1.1 alone, and does not answer to 5."""
    process = subprocess.Popen([sys.executable, "-c", AMQTT, str(port)], cwd=ROOT)
    try:
        yield
    finally:
        process.kill()
        process.wait()


def test_an_mqtt_311_broker_serves_too_and_is_told(tmp_path: Path) -> None:
    port, sender = free_port(), Sender()
    url = f"sqlite:///{tmp_path}/fleet.db"
    at = f"mqtt://127.0.0.1:{port}"
    ingest = IngestProcess(tmp_path, at, url, "--connect-timeout-s", "1")
    with amqtt(port), running(ingest), Line(port, sender, v5=False) as line:
        assert ingest.said("does not share subscriptions") == 1
        assert metric(ingest, "holdfast_fleet_shared") == 0
        line.send(sender.batch(range(1, 101)))
        line.marked(100)
        assert ingest.stop() == 0
    assert ask(url, lambda cloud: seqs(cloud, sender.device)) == list(range(1, 101))


def test_a_broker_with_password_and_certificate(tmp_path: Path) -> None:
    key, certificate = tmp_path / "key.pem", tmp_path / "cert.pem"
    made = [
        *("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"),
        *("-nodes", "-days", "2", "-subj", "/CN=localhost", "-keyout", str(key)),
        *("-addext", "subjectAltName=DNS:localhost", "-out", str(certificate)),
    ]
    subprocess.run(made, check=True, capture_output=True)
    passwords = tmp_path / "passwords"
    tool = program("mosquitto_passwd", "mosquitto")
    subprocess.run([tool, "-b", "-c", str(passwords), "ingest", "geheim"], check=True)
    secure, plain = free_port(), free_port()
    extra = (
        f"certfile {certificate}\nkeyfile {key}\npassword_file {passwords}\n"
        f"listener {plain} 127.0.0.1\n"  # who names nobody needs no password
    )
    broker = Mosquitto(tmp_path, secure, extra)
    (tmp_path / "password").write_text("geheim\n")
    options = ("--username", "ingest", "--password-file", str(tmp_path / "password"))
    url, sender = f"sqlite:///{tmp_path}/fleet.db", Sender()
    at = f"mqtts://localhost:{secure}"
    ingest = IngestProcess(tmp_path, at, url, *options, "--ca-file", str(certificate))
    with running(broker, ingest), Line(plain, sender) as line:
        line.send(sender.batch([1]))
        line.marked(1)
        assert ingest.stop() == 0
        (tmp_path / "password").write_text("wrong")
        ingest.begin()
        until(lambda: ingest.said("the broker refused"), "the wrong password is said")
        ingest.kill()
    assert "geheim" not in ingest.log.read_text()

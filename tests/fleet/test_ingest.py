"""The ingest between a real Mosquitto and both databases."""

import asyncio
import sqlite3
from collections.abc import Callable, Coroutine
from contextlib import closing
from pathlib import Path
from typing import Any, TypeVar
from urllib.request import urlopen

from paho.mqtt import publish

from agent.records import Balance
from fleet.mqtt.waiting import WAITING_MAX
from fleet.store import database
from fleet.store.cloud import Cloud
from tests.fleet.cluster import Cluster
from tests.fleet.look import rows, seqs
from tests.fleet.process import IngestProcess, Line
from tests.fleet.sender import Sender, encoded
from tests.outside import Mosquitto, running, until

T = TypeVar("T")


def ask(url: str, question: Callable[[Cloud], Coroutine[Any, Any, T]]) -> T:
    """Ask the database beside the process that writes it."""

    async def asked() -> T:
        async with Cloud(database.open(url, reads_only=True)) as cloud:
            return await question(cloud)

    return asyncio.run(asked())


def metric(ingest: IngestProcess, name: str) -> float:
    """One number of the metrics; 0 before it is there."""
    with urlopen(f"http://127.0.0.1:{ingest.metrics_port}/metrics", timeout=30) as answer:
        lines = answer.read().decode().splitlines()
    return sum(float(line.split()[-1]) for line in lines if line.split("{")[0].split()[0] == name)


def test_what_devices_publish_is_stored_and_acknowledged(tmp_path: Path, url: str) -> None:
    broker = Mosquitto(tmp_path)
    ingest = IngestProcess(tmp_path, broker.url, url)
    one, other = Sender("press-7"), Sender("grüße an 8")
    with (
        running(broker, ingest),
        Line(broker.port, one) as line,
        Line(broker.port, other) as another,
    ):
        line.send(*[one.batch(range(at, at + 100)) for at in range(1, 1001, 100)])
        another.send(other.piece(1, b"sound", 0, 5), other.batch([1], blob_bytes=5))
        line.marked(1000)
        another.marked(1)
        line.send(one.batch(range(900, 1101)))
        line.marked(1100)
        assert metric(ingest, "holdfast_fleet_records_total") == 1202
        assert metric(ingest, "holdfast_fleet_shared") == 1
        assert ingest.stop() == 0
    assert ask(url, lambda cloud: seqs(cloud, one.device)) == list(range(1, 1101))
    assert ask(url, lambda cloud: seqs(cloud, other.device)) == [1]


def test_a_device_that_appears_is_told_what_is_there(tmp_path: Path, url: str) -> None:
    broker, sender = Mosquitto(tmp_path), Sender()
    ingest = IngestProcess(tmp_path, broker.url, url, "--heartbeat-s", "0.1")
    with running(broker, ingest), Line(broker.port, sender) as line:
        line.send(sender.batch([1, 2]))
        line.marked(2)
        broker.kill()  # and its retained acks are gone
        line.acks.clear()
        broker.start()
        until(lambda: ingest.said("connected to") == 2, "the ingest connects again")
        line.appear()
        line.marked(2)
        line.say("heartbeat", encoded(sender.heartbeat(Balance(5, 2, 3, {}), "degraded")))
        asked = "SELECT online, status, version FROM devices"
        until(
            lambda: ask(url, lambda cloud: rows(cloud, asked)) == [(True, "degraded", "1")],
            "the heartbeat is written",
        )


def test_poison_is_kept_and_holds_up_nobody(tmp_path: Path, url: str) -> None:
    broker, sender = Mosquitto(tmp_path), Sender()
    ingest = IngestProcess(tmp_path, broker.url, url)
    with running(broker, ingest), Line(broker.port, sender) as line:
        line.say("up/a", b"poison")
        line.say("presence", b"poison")
        line.say("heartbeat", b"poison")
        line.say("blob/a", b"poison")
        line.send(sender.batch([1]))
        line.marked(1)
        until(lambda: metric(ingest, "holdfast_fleet_refused_total") == 4, "all are refused")
        assert not ingest.dead()
    assert ask(url, lambda cloud: rows(cloud, "SELECT count(*) FROM refused")) == [(4,)]


def test_small_messages_that_are_large_when_opened_do_not_fill_the_memory(tmp_path: Path) -> None:
    """All of them wait at once, for the database is another's; the process has 1 GiB in all."""
    path = tmp_path / "fleet.db"
    broker, sender, loud = Mosquitto(tmp_path), Sender(), Sender("loud")
    ingest = IngestProcess(tmp_path, broker.url, f"sqlite:///{path}")
    ingest.command = ["prlimit", f"--as={1 << 30}", *ingest.command]
    body = b'"' + b"a" * 12_000_000 + b'"'
    with (
        running(broker, ingest),
        Line(broker.port, sender) as line,
        Line(broker.port, loud) as shout,
    ):
        line.send(sender.batch([1]))
        line.marked(1)
        with closing(sqlite3.connect(path)) as other:
            other.execute("BEGIN IMMEDIATE")
            shout.send(*[loud.records([loud.record(seq, body=body)]) for seq in range(1, 46)])
            line.send(sender.batch([2]))
            until(lambda: metric(ingest, "holdfast_fleet_waiting") >= 40, "they wait")
            other.execute("ROLLBACK")
        line.marked(2)
        shout.marked(45)
        assert not ingest.dead()


def test_nothing_is_lost_while_postgresql_is_down(tmp_path: Path) -> None:
    cluster, broker, sender = Cluster(), Mosquitto(tmp_path), Sender()
    try:
        cluster.start()
        url = cluster.new()
        ingest = IngestProcess(tmp_path, broker.url, url)
        with running(broker, ingest), Line(broker.port, sender) as line:
            line.send(sender.batch([1]))
            line.marked(1)
            cluster.kill()
            line.send(*[sender.batch([seq]) for seq in range(2, 402)])
            until(lambda: ingest.said("trying again") >= 2, "it says that it tries again")
            cluster.start()
            line.marked(401)
            assert ask(url, lambda cloud: seqs(cloud, sender.device)) == list(range(1, 402))
    finally:
        cluster.remove()


def test_nothing_is_lost_while_sqlite_is_locked(tmp_path: Path) -> None:
    broker, sender = Mosquitto(tmp_path), Sender()
    path = tmp_path / "fleet.db"
    ingest = IngestProcess(tmp_path, broker.url, f"sqlite:///{path}")
    with running(broker, ingest), Line(broker.port, sender) as line:
        line.send(sender.batch([1]))
        line.marked(1)
        with closing(sqlite3.connect(path, isolation_level=None)) as other:
            other.execute("BEGIN EXCLUSIVE")
            line.send(sender.batch([2]))
            until(lambda: ingest.said("trying again") >= 1, "it says that it tries again")
        line.marked(2)


def test_what_comes_with_qos_0_does_not_wait_without_bound(tmp_path: Path) -> None:
    broker, sender = Mosquitto(tmp_path), Sender()
    path = tmp_path / "fleet.db"
    ingest = IngestProcess(tmp_path, broker.url, f"sqlite:///{path}")
    with running(broker, ingest), Line(broker.port, sender) as line:
        line.send(sender.batch([1]))
        line.marked(1)
        with closing(sqlite3.connect(path, isolation_level=None)) as other:
            other.execute("BEGIN EXCLUSIVE")
            topic = f"{Sender('noise').root}/up/x"
            noise: Any = [(topic, b"%d" % number, 0, False) for number in range(1000)]

            def left_out() -> bool:
                publish.multiple(noise, "127.0.0.1", broker.port)
                return metric(ingest, "holdfast_fleet_messages_left_out_total") > 0

            until(left_out, "some are left out")
            assert metric(ingest, "holdfast_fleet_waiting") <= WAITING_MAX
            line.send(sender.batch([2]))
        line.marked(2)
        assert ingest.said("are left out") == 1


def test_a_password_file_that_is_away_is_waited_for(tmp_path: Path) -> None:
    broker, sender, file = Mosquitto(tmp_path), Sender(), tmp_path / "password"
    url = f"sqlite:///{tmp_path}/fleet.db"
    ingest = IngestProcess(
        tmp_path, broker.url, url, "--username", "u", "--password-file", str(file)
    )
    with running(broker):
        ingest.begin()
        until(ingest.dead, "without it, it does not start")
        file.write_text("secret")
        with running(ingest):
            file.unlink()
            before = ingest.said("No such file")
            broker.kill()
            broker.start()
            until(
                lambda: ingest.dead() or ingest.said("No such file") > before,
                "it says what is away",
            )
            file.write_text("secret")
            until(lambda: ingest.said("connected to") == 2, "it connects again")
            with Line(broker.port, sender) as line:
                line.send(sender.batch([1]))
                line.marked(1)


def test_two_ingests_share_the_work(tmp_path: Path, cluster: Cluster) -> None:
    broker, url, sender = Mosquitto(tmp_path), cluster.new(), Sender()
    first = IngestProcess(tmp_path, broker.url, url)
    second = IngestProcess(tmp_path, broker.url, url, "--session-s", "1")
    with running(broker, first, second), Line(broker.port, sender) as line:
        line.send(*[sender.batch(range(at, at + 5)) for at in range(1, 1001, 5)])
        line.marked(1000)
        for ingest in (first, second):  # it counts what is committed, a moment later
            until(lambda i=ingest: metric(i, "holdfast_fleet_records_total"), "it has its share")
        second.kill()
        while (mark := line.acked().mark) < 2000:  # what went to the dead one is sent again
            line.send(*[sender.batch(range(at, at + 5)) for at in range(mark + 1, 2001, 5)])
    assert ask(url, lambda cloud: seqs(cloud, sender.device)) == list(range(1, 2001))


def test_a_named_ingest_finds_what_came_while_it_was_away(tmp_path: Path, url: str) -> None:
    broker, sender = Mosquitto(tmp_path), Sender()
    ingest = IngestProcess(tmp_path, broker.url, url, "--client-id", "ingest-1")
    with running(broker, ingest), Line(broker.port, sender) as line:
        line.send(sender.batch([1]))
        line.marked(1)
        ingest.kill()
        line.send(sender.batch([2, 3]))
        ingest.start()
        line.marked(3)
        assert ingest.stop() == 0
        line.send(sender.batch([4]))
        ingest.start()
        line.marked(4)
        line.send(*[sender.batch([seq]) for seq in range(5, 305)])
        assert ingest.stop() == 0  # in the middle of it: nothing that it took is lost
        ingest.start()
        line.send(sender.batch([305]))
        line.marked(305)

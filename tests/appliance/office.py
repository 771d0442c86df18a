"""Who makes versions of the agent, signs and publishes them: on this host, for the machine.

Each by the shipped commands, of this working tree with another number. The machine fetches by HTTP.
"""

import shutil
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import yaml

from agent import VERSION
from tests.appliance.image.build import HERE, PYTHON, Image, checkout, own_wheel
from tests.fleet.process import FLEET

CONFIG = "etc/holdfast/config.yaml"
ENDS = 'raise SystemExit("it ends at once")\n'  # a version whose agent passes the test, and no more


class Office:
    """Root of the machine believes `release` alone."""

    def __init__(self, folder: Path, image: Image) -> None:
        self._folder, self._wheels = folder, image.wheels
        self._home = ("--home", str(folder / "updates"))
        self._keys = ("--keys", str(folder / "keys"))
        self._repository = folder / "updates" / "repository"
        self._release = ""
        _fleet("updates", "init", *self._keys, *self._home)

    def publish(self, number: str, *, ends: bool = False, key: str = "release") -> str:
        """Make it, and have it fetched by the name that this returns."""
        package, wheels = self._folder / f"holdfast-{number}.tar", self._folder / "wheels"
        shutil.copytree(self._wheels, wheels)
        source = self._folder / "source"
        _version(source, number, ends=ends)
        own_wheel(source, wheels)
        words = ("--key", str(self._folder / key), "--machine", "x86_64", "--python", PYTHON)
        said = _fleet("package", str(wheels), "--out", str(package), *words)
        if key == "release":
            self._release = said.split()[-1]
        target = f"agent/{package.name}"
        about = ("--kind", "agent", "--name", "holdfast", "--version", number)
        _fleet("updates", "add", str(package), *about, "--target", target, *self._home)
        _fleet("updates", "publish", *self._keys, *self._home)
        for one in (wheels, source):
            shutil.rmtree(one)
        return target

    @contextmanager
    def open(self) -> Iterator[dict[str, str]]:
        """While it serves: what the machine has to know, as files of it."""
        handler = partial(Silent, directory=str(self._repository))
        with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
            thread = threading.Thread(target=server.serve_forever)
            thread.start()
            try:
                yield self._files(server.server_address[1])
            finally:
                server.shutdown()
                thread.join()

    def _files(self, port: int) -> dict[str, str]:
        whole = yaml.safe_load((HERE / "root" / CONFIG).read_text())
        url, root = f"http://10.0.2.2:{port}/", "etc/holdfast/root.json"
        whole["updates"] = {"root_file": f"/{root}", "urls": [url], "free_bytes_min": 0}
        trusted = self._repository / "metadata" / "1.root.json"
        keys = self._release or "# nobody's"
        return {
            CONFIG: yaml.safe_dump(whole),
            root: trusted.read_text(),
            "etc/holdfast/update.keys": f"{keys}\n",
        }


class Silent(SimpleHTTPRequestHandler):
    """Tells nobody of each request."""

    def log_message(self, format: str, *args: object) -> None: ...


def _version(source: Path, number: str, *, ends: bool) -> None:
    checkout(source)
    told = source / "agent" / "__init__.py"
    text = told.read_text()
    assert f'"{VERSION}"' in text
    told.write_text(text.replace(f'"{VERSION}"', f'"{number}"'))
    if ends:
        run = source / "agent" / "cli" / "run.py"
        run.write_text(ENDS + run.read_text())


def _fleet(*words: str) -> str:
    """What `holdfast-fleet` says. Raises CalledProcessError."""
    done = subprocess.run([str(FLEET), *words], stdout=subprocess.PIPE, text=True, check=True)
    return done.stdout

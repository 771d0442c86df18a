"""A browser, and an agent with two domains, a source and a broker."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Playwright, expect, sync_playwright

from tests.inference.domains.rig import put
from tests.outside import ROOT, Device, Mosquitto, free_port, program, running, until
from tests.page.window import DEADLINE_S, Site

expect.set_options(timeout=DEADLINE_S * 1000)


# Not for longer: while it runs, its loop keeps asynchronous tests from having one.
@pytest.fixture(scope="module")
def playing() -> Iterator[Playwright]:
    with sync_playwright() as playwright:
        yield playwright


@pytest.fixture(scope="module")
def browser(playing: Playwright) -> Iterator[Browser]:
    chromium = program("chromium", "chromium")
    launched = playing.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
    yield launched
    launched.close()


@pytest.fixture(scope="package")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("page")
    models, sounds, port = folder / "models", folder / "sounds", free_port()
    put(models, 1)
    put(models, 2)
    shutil.copytree(ROOT / "models/speech", models / "speech")
    sounds.mkdir()
    shutil.copy(ROOT / "samples/fan.flac", sounds / "fan.flac")
    broker = Mosquitto(folder)
    device = Device(folder, _settings(folder, models, sounds, broker.url, port))
    with running(broker, device):
        until(lambda: all(one["ready"] for one in device.status()["domains"].values()), "ready")
        yield Site(device, broker, f"http://127.0.0.1:{port}/")


def _settings(
    folder: Path, models: Path, sounds: Path, broker_url: str, port: int
) -> dict[str, object]:
    return {
        "models": {"path": str(models)},
        "api": {"port": port, "socket": str(folder / "holdfast.sock")},
        "link": {"broker_url": broker_url, "ack_from": "broker"},
        "domains": {"vision": {"models": ["m"]}},
        "audio": {"sources": [{"kind": "folder", "name": "inbox", "path": str(sounds)}]},
    }

"""`make run` as a newcomer sees it: the shipped configuration, samples, model, embedded broker."""

import os
import re
import signal
import subprocess
from pathlib import Path

import yaml

from tests.outside import HOLDFAST, ROOT, until


def test_the_shipped_configuration_gets_a_segment_acknowledged(tmp_path: Path) -> None:
    settings = yaml.safe_load((ROOT / "config/default.yaml").read_text())
    settings["api"]["port"] = 0  # so that an agent of yours may run beside the tests
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(settings))
    for shipped in ("models", "samples"):
        (tmp_path / shipped).symlink_to(ROOT / shipped)
    log = tmp_path / "agent.log"
    command = [str(HOLDFAST), "run", "--config", "config.yaml"]

    def said(pattern: str) -> bool:
        return re.search(pattern, log.read_text()) is not None

    for start in (1, 2):  # the second one goes on where the first was
        log.write_bytes(b"")
        with log.open("ab") as out:
            agent = subprocess.Popen(
                command, cwd=tmp_path, stdout=out, stderr=out, start_new_session=True
            )
        try:
            for what in ("health +http://127", "holdfast status", "heard.*kept", "link.*sent"):
                until(lambda what=what: said(what), what)
            until(lambda: said(r"acknowledged by the broker"), "acknowledged")
            os.killpg(agent.pid, signal.SIGINT)  # Ctrl-C reaches the whole group
            assert agent.wait(30) == 0
            assert "Traceback" not in log.read_text()
        finally:
            if agent.poll() is None:
                os.killpg(agent.pid, signal.SIGKILL)
                agent.wait()
        numbers = [int(n) for n in re.findall(r"segments #(\d+)", log.read_text())]
        assert min(numbers) == 1 if start == 1 else min(numbers) > 1

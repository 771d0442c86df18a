"""The audio domain with the real model in a real child process."""

import asyncio
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import numpy as np
import psutil
import pytest
import soundfile
from msgspec.structs import replace

from agent import config
from agent.clock import Clock
from agent.errors import CallLost, ModelError, PoisonError
from agent.inference import wire
from agent.inference.admission import Admission
from agent.inference.catalog import Catalog, Model
from agent.inference.domains.domain import Domain, Parts
from agent.inference.domains.work import Result
from agent.inference.domains.zygote import Zygote
from agent.inference.speech import FRESH, Heard, Speech, lag
from bench.unconfined import Unconfined
from tests.outside import ROOT, alive, until

DEADLINE_S = 90.0
PIECES_MAX = 160  # of the smallest, one second
RULES = config.Domain(models=["speech"], call_timeout_s=1.0, restart_s_min=0.01)


@asynccontextmanager
async def running(
    model: Model | None = None, rules: config.Domain = RULES
) -> AsyncIterator[Speech]:
    """A domain with its loops, ready."""
    found = model or Catalog(ROOT / "models").newest("speech")
    clock = Clock()
    zygote = Zygote()
    ways = (clock, lambda _: None, Admission(clock).prove, Unconfined(), zygote, 1)
    async with zygote, Domain("audio", rules, Parts(lambda: {"speech": found}, *ways)) as domain:
        task = asyncio.create_task(domain.run())
        try:
            yield Speech(domain, "speech", clock)
        finally:
            task.cancel()
            await asyncio.wait([task])


@pytest.fixture
async def speech() -> AsyncIterator[Speech]:
    async with running() as found:
        async with asyncio.timeout(DEADLINE_S):
            await found.domain.ready.wait()
        yield found


def sound() -> bytes:
    pcm, _ = soundfile.read(ROOT / "samples/fan.flac", dtype="int16")
    return pcm[: 16_000 * 4].tobytes()


async def in_pieces(speech: Speech, pcm: bytes, samples: int) -> tuple[np.ndarray, np.ndarray]:
    """A whole stream, given in pieces of so many samples."""
    memory, heard = FRESH, list[Heard]()
    for start in range(0, len(pcm), 2 * samples):
        heard.append(await speech.hear(pcm[start : start + 2 * samples], memory))
        memory = heard[-1].memory
    heard.append(await speech.hear(b"", memory, end=True))
    return np.concatenate([h.clean for h in heard]), np.concatenate([h.speech for h in heard])


async def test_clean_sound_is_as_long_as_what_went_in_and_in_its_place(speech: Speech) -> None:
    pcm = sound()
    clean, probability = await in_pieces(speech, pcm, 8000)
    went_in = np.frombuffer(pcm, np.int16).astype(float)
    assert len(went_in) <= len(clean) < len(went_in) + 512
    assert len(probability) == -(-len(went_in) // 256) + 1
    assert ((probability >= 0) & (probability <= 1)).all()
    clean = clean[: len(went_in)].astype(float)
    shifts = {s: float(np.roll(clean, s) @ went_in) for s in (-512, -256, -16, 0, 16, 256, 512)}
    assert max(shifts, key=lambda s: shifts[s]) == 0, shifts


@pytest.mark.parametrize("samples", [100, 256, 1000, 8000, 64_000])
async def test_the_pieces_do_not_matter(speech: Speech, samples: int) -> None:
    pcm = sound()[: 2 * PIECES_MAX * samples]
    clean, probability = await in_pieces(speech, pcm, samples)
    whole, reference = await in_pieces(speech, pcm, 64_000)
    np.testing.assert_array_equal(clean, whole)
    np.testing.assert_allclose(probability, reference, atol=1e-6)


async def test_streams_do_not_hear_each_other(speech: Speech) -> None:
    alone = [(await in_pieces(speech, sound()[2 * 999 * i :], 3000))[0] for i in range(6)]
    together = await asyncio.gather(
        *(in_pieces(speech, sound()[2 * 999 * i :], 3000) for i in range(6))
    )
    for one, (clean, _) in zip(alone, together, strict=True):
        assert np.abs(one.astype(int) - clean).max() <= 1  # rounding differs by batch


async def test_the_lag_is_what_is_missing(speech: Speech) -> None:
    pcm, memory = sound(), FRESH
    given = judged = clean = 0
    for samples in (100, 5000, 77, 256, 1):
        heard = await speech.hear(pcm[2 * given : 2 * (given + samples)], memory)
        memory, given = heard.memory, given + samples
        judged, clean = judged + 256 * len(heard.speech), clean + len(heard.clean)
        assert lag(memory, 256) == (given - judged, given - clean)


@pytest.mark.parametrize("sign", [signal.SIGKILL, signal.SIGSTOP])
async def test_a_killed_or_hung_child_costs_no_call(speech: Speech, sign: signal.Signals) -> None:
    whole, _ = await in_pieces(speech, sound(), 1000)
    victim = speech.domain.pid
    assert victim is not None
    hearing = asyncio.create_task(in_pieces(speech, sound(), 1000))
    await asyncio.sleep(0)
    os.kill(victim, sign)
    clean, _ = await asyncio.wait_for(hearing, DEADLINE_S)
    np.testing.assert_array_equal(clean, whole)
    assert speech.domain.pid != victim
    assert speech.domain.restarts == 1
    assert not psutil.pid_exists(victim)


async def test_a_restart_on_request_gives_a_new_child(speech: Speech) -> None:
    before = speech.domain.pid
    speech.domain.restart()
    assert not speech.domain.ready.is_set()
    async with asyncio.timeout(DEADLINE_S):
        await speech.domain.ready.wait()
    assert speech.domain.pid != before


async def test_the_execution_provider_is_read_from_the_session(speech: Speech) -> None:
    assert speech.ep == "CPUExecutionProvider"


async def test_the_child_ends_with_the_domain() -> None:
    async with running() as speech:
        async with asyncio.timeout(DEADLINE_S):
            await speech.domain.ready.wait()
        pid = speech.domain.pid
        assert pid is not None
    assert not psutil.pid_exists(pid)


async def test_a_child_dies_with_a_killed_agent_even_when_it_is_stopped() -> None:
    script = (
        "import asyncio\nfrom tests.inference.test_domain import running\n"
        "async def main():\n"
        "    async with running() as speech:\n"
        "        await speech.domain.ready.wait()\n"
        "        print(speech.domain.pid, flush=True)\n"
        "        await asyncio.sleep(600)\n"
        "asyncio.run(main())\n"
    )
    command = [sys.executable, "-c", script]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        os.kill(child, signal.SIGSTOP)
        parent.kill()
    until(lambda: not alive(child), "the child is gone")


def copied(folder: Path) -> Path:
    """The model repository, to be spoilt."""
    shutil.copytree(ROOT / "models/speech", folder / "speech")
    return folder / "speech/1"


def test_a_changed_model_file_is_not_run(tmp_path: Path) -> None:
    model = copied(tmp_path) / "model.onnx"
    content = bytearray(model.read_bytes())
    content[len(content) // 2] ^= 1
    model.write_bytes(content)
    with pytest.raises(ModelError, match="sha256"):
        Catalog(tmp_path).newest("speech")


def test_a_missing_model_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no version of model 'speech'"):
        Catalog(tmp_path).newest("speech")
    (copied(tmp_path) / "model.onnx").unlink()
    with pytest.raises(ModelError, match=r"model\.yaml"):
        Catalog(tmp_path).newest("speech")


def test_the_highest_version_counts(tmp_path: Path) -> None:
    first = copied(tmp_path)
    shutil.copytree(first, tmp_path / "speech/10")
    manifest = (first / "model.yaml").read_text()
    (tmp_path / "speech/10/model.yaml").write_text(manifest.replace("version: 1", "version: 10"))
    shutil.copytree(first, tmp_path / "speech/9")
    assert Catalog(tmp_path).newest("speech").manifest.version == 10


async def test_what_the_child_cannot_load_is_told_with_the_reason(tmp_path: Path) -> None:
    found = Catalog(ROOT / "models").newest("speech")
    wrong = replace(found, path=tmp_path / "absent.onnx")
    rules = config.Domain(models=["speech"], restart_s_min=0.01, restart_s_max=0.05)
    async with running(wrong, rules) as speech, asyncio.timeout(DEADLINE_S):
        while speech.domain.restarts < 3:
            await asyncio.sleep(0.01)
        assert not speech.domain.ready.is_set()
        assert "absent.onnx" in speech.domain.cause


async def test_a_model_of_another_form_is_refused_by_its_engine(tmp_path: Path) -> None:
    found = Catalog(ROOT / "models").newest("speech")
    wrong = {
        "expected inputs spectrum [N, 2, 161]": (160, 320),
        "expected twice the hop": (128, 512),
    }
    for said, (hop, window) in wrong.items():
        options = {"rate_hz": 16_000, "hop_samples": hop, "window_samples": window}
        manifest = replace(found.manifest, options=options)
        async with (
            running(replace(found, manifest=manifest)) as speech,
            asyncio.timeout(DEADLINE_S),
        ):
            while speech.domain.restarts < 1:
                await asyncio.sleep(0.01)
            assert said in speech.domain.cause


async def test_a_call_that_kills_its_worker_each_time_is_given_back_and_the_others_are_answered(
    speech: Speech,
) -> None:
    """Three bytes are no 16-bit samples: no worker survives them."""
    whole, _ = await in_pieces(speech, sound(), 16_000)
    poison = asyncio.create_task(speech.hear(b"abc"))
    others = [asyncio.create_task(in_pieces(speech, sound(), 16_000)) for _ in range(3)]
    async with asyncio.timeout(DEADLINE_S):
        for clean, _ in await asyncio.gather(*others):
            np.testing.assert_array_equal(clean, whole)
        with pytest.raises(PoisonError, match="ended the domain audio 3 times"):
            await poison
        again, _ = await in_pieces(speech, sound(), 16_000)
    np.testing.assert_array_equal(again, whole)


async def test_a_call_is_never_blamed_for_a_domain_that_dies_of_silence_too(tmp_path: Path) -> None:
    """Nothing is given up while no call at all succeeds."""
    async with running() as found:
        async with asyncio.timeout(DEADLINE_S):
            await found.domain.ready.wait()
            hearing = asyncio.create_task(found.hear(sound()[:32_000]))
            for _ in range(8):
                await found.domain.ready.wait()
                victim = found.domain.pid
                assert victim is not None
                os.kill(victim, signal.SIGKILL)
                while found.domain.pid == victim:
                    await asyncio.sleep(0.001)
            heard = await hearing
    assert len(heard.clean)


async def test_an_error_in_the_worker_is_told_as_what_it_was(speech: Speech) -> None:
    poison = asyncio.create_task(speech.hear(b"abc"))
    causes = set()
    async with asyncio.timeout(DEADLINE_S):
        with pytest.raises(PoisonError):
            while not poison.done():
                causes.add(speech.domain.cause)
                await asyncio.sleep(0.001)
            await poison
    assert any("ValueError" in cause for cause in causes), causes
    assert not any("SIGKILL" in cause for cause in causes)


async def test_a_restart_asked_for_when_there_is_no_child_is_not_the_next_ones_cause(
    speech: Speech,
) -> None:
    async with asyncio.timeout(DEADLINE_S):
        for said in ("restart was asked for", "signal SIGKILL"):
            victim = speech.domain.pid
            assert victim is not None
            if said == "signal SIGKILL":
                os.kill(victim, signal.SIGKILL)
            else:
                speech.domain.restart()
            while not speech.domain.cause:
                await asyncio.sleep(0)
            assert said in speech.domain.cause
            speech.domain.restart()  # it is down: nothing to do, nothing to remember
            await speech.domain.ready.wait()


@pytest.mark.parametrize("head", [b"\xc1", msgspec.msgpack.encode(wire.Heard(1000, 10))])
def test_an_answer_that_makes_no_sense_is_as_a_lost_call(head: bytes) -> None:
    with pytest.raises(CallLost, match="makes no sense"):
        Speech._heard(Result(msgspec.Raw(head), memoryview(bytes(10)), "speech/1@0", "CPU"))

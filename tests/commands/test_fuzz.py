"""Whatever comes at the door: each payload is answered, accepted or refused with a reason."""

import asyncio
import json
import logging
import os
import random
from pathlib import Path
from typing import Any, get_args

import msgspec
import pytest

from agent.protocol.commands import Command, Reason, Result, Unread, decode, sign
from agent.protocol.signing import Key
from tests.commands.rig import DEVICE, Rig, rig
from tests.commands.test_desk import Trusted

LONG = "HOLDFAST_LONG" in os.environ
PAYLOADS, AT_ONCE, SEED = 100_000 if LONG else 3_000, 200, 20_261_122
ODD: list[Any] = [
    None,
    True,
    -1,
    10**30,
    1.5,
    "",
    "x" * 500,
    "\u0000",
    "\ud83d\ude00",
    [],
    {},
    [[]],
]
NAMES = ["write", "same", "fail", "grave", "nosuch", "", "Write", "a.b.c.d", "write\n", "../x"]
KEYS = ["id", "name", "args", "device", "issuer", "issued", "expires", "signed", "by", "extra"]
TIMES = ["2020-01-01T00:00:00Z", "9999-12-31T23:59:59Z", "0001-01-01T00:00:00Z", "soon", "2020"]


def payload(chance: random.Random, n: int, key: Key) -> bytes:
    """Something like a command: right, wrong in one place, or broken."""
    order: dict[str, Any] = {"id": f"f{n}", "name": chance.choice(NAMES), "args": {}}
    if chance.random() < 0.5:
        order["args"] = {"line": chance.choice(["x", *ODD])}
    for _ in range(chance.randrange(3)):
        order[chance.choice(KEYS)] = chance.choice([*ODD, *TIMES, DEVICE, f"f{n}", key.public])
    if chance.random() < 0.1:
        content = sign(Command(id=f"f{n}", name="write", device=DEVICE), key)
    else:
        content = json.dumps(order).encode()
    if chance.random() < 0.3:
        made = bytearray(content)
        for _ in range(chance.randint(1, 4)):
            at = chance.randrange(len(made))
            way = chance.randrange(3)
            if way == 0:
                made[at] = chance.randrange(256)
            elif way == 1:
                del made[at:]
                made += b"{"
            else:
                made[at:at] = bytes(chance.randrange(256) for _ in range(chance.randint(1, 8)))
        content = bytes(made)
    return content


async def answered(one: Rig, content: bytes) -> Result:
    """As the door at the link does."""
    try:
        order = decode(content)
    except Unread as error:
        return await one.desk.unread(error, "mqtt")
    return await one.desk.order(order, "mqtt")


async def test_each_is_answered(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL, "commands")  # each refusal is a line
    chance, key = random.Random(SEED), Key(bytes(32))
    ended: dict[str, set[str]] = {}
    async with rig(tmp_path, signed="grave", keys=[key.public], clock=Trusted()) as one:

        def listen(result: Result) -> None:
            if result.ended and result.number:
                ended.setdefault(result.id, set()).add(result.state)

        one.desk.listeners.append(listen)
        accepted, refused = set(), 0
        for begin in range(0, PAYLOADS, AT_ONCE):
            batch = [payload(chance, begin + n, key) for n in range(AT_ONCE)]
            for result in await asyncio.gather(*(answered(one, content) for content in batch)):
                assert msgspec.json.encode(result)
                if result.state == "refused":
                    assert result.reason in get_args(Reason)
                    assert result.message
                    refused += 1
                else:
                    accepted.add(result.id)
        seen = one.desk.changes.number
        while await one.store.journal.open():
            seen = await one.desk.changes.after(seen)
        assert ended.keys() == accepted
        assert all(len(states) == 1 for states in ended.values())
        counts = await one.store.journal.counts()
        assert counts["accepted"] == len(accepted)
        assert sum(n for event, n in counts.items() if event.startswith("refused:")) == refused
        assert min(len(accepted), refused) > PAYLOADS // 40
        lines = [line for line in one.effects.lines() if line.partition(":")[0] in accepted]
        assert len(lines) == len({line.partition(":")[0] for line in lines}), "one effect each"

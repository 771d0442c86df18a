"""kill -9 of an ingest at a named point: `python -m tests.fleet.tripwire POINT TIMES ingest …`.

What the databases' drivers and paho are asked to do is counted; the product knows nothing of it.
"""

import functools
import os
import signal
import sqlite3
import sys
from typing import Any

import asyncpg
import paho.mqtt.client as mqtt

from fleet import cli
from tests.store.faults import tripwire

POINTS = [
    "begin",  # before BEGIN
    "begun",  # after it
    "statement",  # before rows are written
    "written",  # after records were
    "commit",  # before COMMIT
    "committed",  # after it, before the PUBACK
    "taken",  # after a PUBACK, before the ack
    "told",  # after the ack was published
]


def install(point: str, times: int) -> None:
    """End this process when `point` is met for this time."""
    left = times

    def met(here: str) -> None:
        nonlocal left
        left -= here == point
        if left == 0 and here == point:
            os.kill(os.getpid(), signal.SIGKILL)

    connect = tripwire.connector(met)
    sqlite3.connect = _writes_told(connect, met)  # type: ignore[assignment]
    asyncpg.create_pool = functools.partial(asyncpg.create_pool, connection_class=_postgres(met))
    ack, publish = mqtt.Client.ack, mqtt.Client.publish

    def acked(self: mqtt.Client, *arguments: Any) -> Any:
        done = ack(self, *arguments)
        met("taken")
        return done

    def published(self: mqtt.Client, *arguments: Any, **named: Any) -> Any:
        done = publish(self, *arguments, **named)
        met("told")
        return done

    mqtt.Client.ack, mqtt.Client.publish = acked, published  # type: ignore[method-assign]


def _writes_told(connect: Any, met: Any) -> Any:
    """sqlite3.connect whose connections tell that records were written, too."""

    def opened(*arguments: Any, factory: Any = None, **named: Any) -> Any:
        found = connect(*arguments, **named)
        for name in ("execute", "executemany"):
            setattr(type(found), name, _then_written(getattr(type(found), name), met))
        return found

    return opened


def _then_written(original: Any, met: Any) -> Any:
    def call(self: Any, sql: str, *arguments: Any) -> Any:
        done = original(self, sql, *arguments)
        if "INTO records" in sql:
            met("written")
        return done

    return call


def _postgres(met: Any) -> Any:
    class Connection(asyncpg.Connection):
        async def execute(self, query: str, *arguments: Any, **named: Any) -> Any:
            word = query.split()[0].strip(";")
            met({"BEGIN": "begin", "COMMIT": "commit"}.get(word, "statement"))
            done = await super().execute(query, *arguments, **named)
            met({"BEGIN": "begun", "COMMIT": "committed"}.get(word, ""))
            return done

        async def copy_records_to_table(self, *arguments: Any, **named: Any) -> Any:
            met("statement")
            done = await super().copy_records_to_table(*arguments, **named)
            met("written")
            return done

    return Connection


if __name__ == "__main__":
    install(sys.argv[1], int(sys.argv[2]))
    sys.argv = ["holdfast-fleet", *sys.argv[3:]]
    cli.main()

"""`runner.py FOLDER THREADS`: for each number read, so many puts a thread; answers with seconds.

The clock stops when another connection sees all rows: `put` itself answers before the write.
"""

import logging
import sqlite3
import sys
import threading
import time

from thingsboard_gateway.storage.sqlite.sqlite_event_storage import SQLiteEventStorage

BODY = "x" * 512
POLL_S = 0.005


def main() -> None:
    folder, threads = sys.argv[1], int(sys.argv[2])
    logger = logging.getLogger("storage")
    logger.trace = logger.debug  # the gateway calls its own level
    logger.setLevel(logging.ERROR)
    storage = SQLiteEventStorage({"data_file_path": f"{folder}/"}, logger, threading.Event())
    reader = sqlite3.connect(f"{folder}/data.db")
    expected = 0

    def put(count: int) -> None:
        for _ in range(count):
            storage.put(BODY)

    for line in sys.stdin:
        producers = [threading.Thread(target=put, args=(int(line),)) for _ in range(threads)]
        expected += threads * int(line)
        began = time.perf_counter()
        for producer in producers:
            producer.start()
        while (reader.execute("SELECT max(id) FROM messages").fetchone()[0] or 0) < expected:
            time.sleep(POLL_S)
        print(time.perf_counter() - began, flush=True)
    storage.stop()


if __name__ == "__main__":
    main()

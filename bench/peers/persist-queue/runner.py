"""`runner.py FOLDER THREADS`: for each number read, so many puts a thread; answers with seconds."""

import sys
import threading
import time

import persistqueue

BODY = b"x" * 512


def main() -> None:
    folder, threads = sys.argv[1], int(sys.argv[2])
    queue = persistqueue.SQLiteAckQueue(folder, multithreading=True, auto_commit=True)

    def put(count: int) -> None:
        for _ in range(count):
            queue.put(BODY)

    for line in sys.stdin:
        producers = [threading.Thread(target=put, args=(int(line),)) for _ in range(threads)]
        began = time.perf_counter()
        for producer in producers:
            producer.start()
        for producer in producers:
            producer.join()
        print(time.perf_counter() - began, flush=True)


if __name__ == "__main__":
    main()

-- Streams of this file's own epoch have epoch ''; those of a file that was salvaged keep theirs.
-- `bytes` is what the held records take, blobs included; `bytes_max`, where a rule sets it, bounds
-- that. `thinned` is the seq up to which every n-th record was given up.
CREATE TABLE streams_new (
    id        INTEGER PRIMARY KEY,
    epoch     TEXT    NOT NULL DEFAULT '',
    name      TEXT    NOT NULL,
    produced  INTEGER NOT NULL DEFAULT 0,
    delivered INTEGER NOT NULL DEFAULT 0,
    held      INTEGER NOT NULL DEFAULT 0,
    bytes     INTEGER NOT NULL DEFAULT 0,
    bytes_max INTEGER,
    sendable  INTEGER,
    settled   INTEGER NOT NULL DEFAULT 0,
    thinned   INTEGER NOT NULL DEFAULT 0,
    UNIQUE (epoch, name)
) STRICT;
INSERT INTO streams_new (id, name, produced, delivered, held, sendable, settled, bytes)
    SELECT id, name, produced, delivered, held, sendable, settled,
        (SELECT coalesce(sum(length(body) + blob_bytes), 0) FROM records WHERE stream = id)
    FROM streams;
DROP TABLE streams;
ALTER TABLE streams_new RENAME TO streams;

-- How many records of a stream were dropped, by reason: the ledger. The ranges in `drops` are kept
-- only until the far side knows them.
CREATE TABLE dropped (
    stream INTEGER NOT NULL REFERENCES streams,
    reason TEXT    NOT NULL,
    count  INTEGER NOT NULL,
    PRIMARY KEY (stream, reason)
) STRICT, WITHOUT ROWID;
INSERT INTO dropped
    SELECT stream, reason, sum(last - first + 1) FROM drops GROUP BY stream, reason;

-- The boots this file has seen. A record's age runs on the monotonic clock of its boot: the clock of
-- a boot begins at `base_ns`, where that of the boot before was last seen (`seen_ns` into it).
CREATE TABLE boots (
    number  INTEGER PRIMARY KEY,
    boot    TEXT    NOT NULL UNIQUE,
    base_ns INTEGER NOT NULL,
    seen_ns INTEGER NOT NULL
) STRICT;

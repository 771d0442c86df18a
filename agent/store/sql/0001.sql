-- Who this file is: epoch (identity of everything in it), created_us.
CREATE TABLE meta (
    key   TEXT PRIMARY KEY,
    value TEXT NOT NULL
) STRICT, WITHOUT ROWID;

-- One row a stream, with its side of the ledger. `produced` is also the last seq given out: seqs run
-- from 1 without a gap. Rows above `sendable` (if set) are not yet the uplink's business.
CREATE TABLE streams (
    id        INTEGER PRIMARY KEY,
    name      TEXT    NOT NULL UNIQUE,
    produced  INTEGER NOT NULL DEFAULT 0,
    delivered INTEGER NOT NULL DEFAULT 0,
    held      INTEGER NOT NULL DEFAULT 0,
    sendable  INTEGER
) STRICT;

-- What is held. A row leaves when it is acknowledged or dropped, in the transaction that counts it.
CREATE TABLE records (
    stream     INTEGER NOT NULL REFERENCES streams,
    seq        INTEGER NOT NULL,
    type       TEXT    NOT NULL,
    boot       TEXT    NOT NULL,
    mono_ns    INTEGER NOT NULL,
    wall_us    INTEGER NOT NULL,
    body       BLOB    NOT NULL,
    blob_bytes INTEGER NOT NULL,
    PRIMARY KEY (stream, seq)
) STRICT, WITHOUT ROWID;

-- The blob of a record, in pieces of at most 64 KiB; `start` is the byte where a piece begins.
CREATE TABLE chunks (
    id     INTEGER PRIMARY KEY,
    stream INTEGER NOT NULL,
    seq    INTEGER NOT NULL,
    start  INTEGER NOT NULL,
    data   BLOB    NOT NULL,
    UNIQUE (stream, seq, start)
) STRICT;

-- What was dropped, as ranges; neighbours with one reason are one row.
CREATE TABLE drops (
    stream INTEGER NOT NULL REFERENCES streams,
    first  INTEGER NOT NULL,
    last   INTEGER NOT NULL,
    reason TEXT    NOT NULL,
    PRIMARY KEY (stream, first)
) STRICT, WITHOUT ROWID;

-- The recordings that are being taken in: how many samples of each are accepted.
CREATE TABLE takes (
    id       INTEGER PRIMARY KEY AUTOINCREMENT,
    source   TEXT    NOT NULL,
    name     TEXT    NOT NULL,
    identity TEXT    NOT NULL,
    samples  INTEGER NOT NULL DEFAULT 0,
    ended    INTEGER NOT NULL DEFAULT 0,
    UNIQUE (source, name, identity)
) STRICT;

-- How far each source's raw audio has become segments, and what the model remembers there; see
-- records.Position.
CREATE TABLE positions (
    source       TEXT    PRIMARY KEY,
    take         INTEGER NOT NULL,
    floor        INTEGER NOT NULL,
    spoken_until INTEGER NOT NULL,
    next_seq     INTEGER NOT NULL,
    model        TEXT    NOT NULL,
    memory       BLOB    NOT NULL
) STRICT, WITHOUT ROWID;

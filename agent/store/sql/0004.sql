-- A record's key is one number, stream << 40 | seq: without a rowid, a row beyond a quarter of a
-- page took an overflow page of its own. `blob` names the chunks of its blob, 0: it has none.
-- `crc` is the CRC-32 of the whole row (streams.row_crc).
CREATE TABLE records_new (
    id         INTEGER PRIMARY KEY,
    type       TEXT    NOT NULL,
    boot       TEXT    NOT NULL,
    mono_ns    INTEGER NOT NULL,
    wall_us    INTEGER NOT NULL,
    crc        INTEGER NOT NULL,
    blob       INTEGER NOT NULL,
    blob_bytes INTEGER NOT NULL,
    body       BLOB    NOT NULL,
    stream     INTEGER GENERATED ALWAYS AS (id >> 40) VIRTUAL,
    seq        INTEGER GENERATED ALWAYS AS (id & 0xFFFFFFFFFF) VIRTUAL
) STRICT;
INSERT INTO records_new (id, type, boot, mono_ns, wall_us, crc, blob, blob_bytes, body)
    SELECT number, type, boot, mono_ns, wall_us,
        row_crc(number, type, boot, mono_ns, wall_us, blob, blob_bytes, body),
        blob, blob_bytes, body
    FROM (SELECT *, stream << 40 | seq AS number, coalesce((SELECT min(id) FROM chunks
            WHERE chunks.stream = records.stream AND chunks.seq = records.seq), 0) AS blob
        FROM records) ORDER BY number;

-- The pieces of a blob: piece n is chunk blob << 12 | n and begins at byte n * 65,536.
CREATE TABLE chunks_new (
    id   INTEGER PRIMARY KEY,
    crc  INTEGER NOT NULL,
    data BLOB    NOT NULL
) STRICT;
INSERT INTO chunks_new
    SELECT blob << 12 | (start / 65536), crc32(data), data
    FROM (SELECT start, data, min(id) OVER (PARTITION BY stream, seq) AS blob FROM chunks)
    ORDER BY 1;

DROP TABLE records;
DROP TABLE chunks;
ALTER TABLE records_new RENAME TO records;
ALTER TABLE chunks_new RENAME TO chunks;

-- Bytes that producers have brought to a stream since this step, bodies and blobs.
ALTER TABLE streams ADD COLUMN taken_bytes INTEGER NOT NULL DEFAULT 0;

-- What was written, by the kernel's count (`process`, `device`), and the seconds of running time in
-- which it was; up to 10 minutes behind.
CREATE TABLE wear (
    source    TEXT    PRIMARY KEY,
    bytes     INTEGER NOT NULL,
    running_s REAL    NOT NULL
) STRICT, WITHOUT ROWID;

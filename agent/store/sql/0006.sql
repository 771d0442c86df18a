-- Seqs up to `reserved`, where that is above `produced`, may have been given to volatile records
-- that are in memory alone.
ALTER TABLE streams ADD COLUMN reserved INTEGER NOT NULL DEFAULT 0;

-- What the monotonic clock of a boot showed when it was this time, by a clock that was synchronised.
CREATE TABLE bindings (
    id      INTEGER PRIMARY KEY,
    boot    TEXT    NOT NULL,
    mono_ns INTEGER NOT NULL,
    utc_us  INTEGER NOT NULL,
    UNIQUE (boot, mono_ns)
) STRICT;

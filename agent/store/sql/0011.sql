-- What the link remembers, in one row: orders of an operator, and what was sent in the quota's day.
-- Times are of the store's own clock (table boots): NULL is never, for `limit_until_ns` and
-- `paused_until_ns` until somebody takes the order back.
CREATE TABLE link (
    id              INTEGER PRIMARY KEY CHECK (id = 1),
    paused          INTEGER NOT NULL,
    paused_until_ns INTEGER,
    limit_bytes     INTEGER,
    limit_until_ns  INTEGER,
    day             TEXT    NOT NULL,
    day_begun_ns    INTEGER NOT NULL,
    day_used_bytes  INTEGER NOT NULL
) STRICT;

-- The command journal, by number in the order in which commands were accepted; one row for an id.
-- Times `_ns` are of the store's own clock (table boots), `_us` are wall labels. `args` and `result`
-- are JSON; `by` is the key that signed it ('': nobody did), `reply` where else the result goes (JSON,
-- or NULL). `step` is what its handler noted last. `told`: somebody at the link has the result.
CREATE TABLE commands (
    number      INTEGER PRIMARY KEY AUTOINCREMENT,
    id          TEXT    NOT NULL UNIQUE,
    digest      BLOB    NOT NULL,
    name        TEXT    NOT NULL,
    args        BLOB    NOT NULL,
    door        TEXT    NOT NULL,
    issuer      TEXT    NOT NULL,
    by          TEXT    NOT NULL,
    issued_us   INTEGER,
    expires_us  INTEGER,
    expires_ns  INTEGER,
    state       TEXT    NOT NULL,
    attempts    INTEGER NOT NULL DEFAULT 0,
    step        TEXT    NOT NULL DEFAULT '',
    accepted_ns INTEGER NOT NULL,
    accepted_us INTEGER NOT NULL,
    ended_ns    INTEGER,
    ended_us    INTEGER,
    reason      TEXT    NOT NULL DEFAULT '',
    message     TEXT    NOT NULL DEFAULT '',
    hint        TEXT    NOT NULL DEFAULT '',
    result      BLOB,
    reply       BLOB,
    told        INTEGER NOT NULL DEFAULT 0
) STRICT;
CREATE INDEX commands_open ON commands (number) WHERE ended_ns IS NULL;
CREATE INDEX commands_untold ON commands (number) WHERE ended_ns IS NOT NULL AND NOT told;

-- What came and was not accepted, the newest of it: a refusal takes nobody's id.
CREATE TABLE command_refusals (
    number  INTEGER PRIMARY KEY AUTOINCREMENT,
    id      TEXT    NOT NULL,
    name    TEXT    NOT NULL,
    door    TEXT    NOT NULL,
    issuer  TEXT    NOT NULL,
    by      TEXT    NOT NULL,
    at_us   INTEGER NOT NULL,
    reason  TEXT    NOT NULL,
    message TEXT    NOT NULL,
    hint    TEXT    NOT NULL,
    reply   BLOB,
    told    INTEGER NOT NULL DEFAULT 0
) STRICT;
CREATE INDEX refusals_untold ON command_refusals (number) WHERE NOT told;

-- By signer: the newest `issued` of a command that was forgotten. An older one that nobody knows may
-- have been carried out.
CREATE TABLE command_horizons (
    by        TEXT    PRIMARY KEY,
    issued_us INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

-- How many commands ended in each way, and how many were refused for which reason.
CREATE TABLE command_counts (
    event TEXT    PRIMARY KEY,
    count INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

-- The twin: `desired` as it came last, and for each aspect which version of it was converged on.
CREATE TABLE twin (
    key  TEXT PRIMARY KEY,
    body BLOB NOT NULL
) STRICT, WITHOUT ROWID;

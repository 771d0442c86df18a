-- Durable jobs, by number in the order in which they came. Times are of the store's own clock (table
-- boots), `_us` are wall labels. `id` is NULL while the job is being removed. `bytes` is what its
-- chunks take or, while it still arrives, will take. `attempts` is of the chunk at hand.
CREATE TABLE jobs (
    number       INTEGER PRIMARY KEY AUTOINCREMENT,
    id           TEXT    UNIQUE,
    digest       TEXT    NOT NULL,
    model        TEXT    NOT NULL,
    class        INTEGER NOT NULL,
    state        TEXT    NOT NULL,
    rows         INTEGER NOT NULL,
    rows_done    INTEGER NOT NULL DEFAULT 0,
    chunks       INTEGER NOT NULL,
    chunks_done  INTEGER NOT NULL DEFAULT 0,
    attempts     INTEGER NOT NULL DEFAULT 0,
    bytes        INTEGER NOT NULL,
    submitted_ns INTEGER NOT NULL,
    submitted_us INTEGER NOT NULL,
    started_ns   INTEGER,
    started_us   INTEGER,
    ended_ns     INTEGER,
    ended_us     INTEGER,
    error        TEXT    NOT NULL DEFAULT '',
    wanted       BLOB    NOT NULL,
    form         BLOB    NOT NULL DEFAULT x'5b5d',
    answered     BLOB    NOT NULL DEFAULT x'5b5d'
) STRICT;
CREATE INDEX jobs_by_state ON jobs (state, class, number);

-- The pieces of work of a job. The blob of a chunk before `jobs.chunks_done` is its result, that of
-- the others is its input (tensors.py); `pieces` of it are in chunks.
CREATE TABLE job_chunks (
    job    INTEGER NOT NULL REFERENCES jobs,
    chunk  INTEGER NOT NULL,
    rows   INTEGER NOT NULL,
    blob   INTEGER NOT NULL,
    pieces INTEGER NOT NULL,
    bytes  INTEGER NOT NULL,
    PRIMARY KEY (job, chunk)
) STRICT, WITHOUT ROWID;

-- How long a row takes, by model, as it was measured; `used` is the number of the last job.
CREATE TABLE job_rates (
    model TEXT    PRIMARY KEY,
    row_s REAL    NOT NULL,
    used  INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

-- How many jobs were submitted, how many ended as what, and how many were removed for which reason.
CREATE TABLE job_counts (
    event TEXT    PRIMARY KEY,
    count INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

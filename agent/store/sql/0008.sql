-- Store files that were damaged and put aside, and what was saved from each. `exact`: whether `lost`
-- is all that was lost, or only what is known of it.
CREATE TABLE salvages (
    name  TEXT    PRIMARY KEY,
    epoch TEXT    NOT NULL,
    cause TEXT    NOT NULL,
    at_us INTEGER NOT NULL,
    state TEXT    NOT NULL,
    saved INTEGER NOT NULL DEFAULT 0,
    lost  INTEGER NOT NULL DEFAULT 0,
    exact INTEGER NOT NULL DEFAULT 1
) STRICT, WITHOUT ROWID;

-- How many of the held records of a stream are still in the file that was put aside.
ALTER TABLE streams ADD COLUMN quarantined INTEGER NOT NULL DEFAULT 0;

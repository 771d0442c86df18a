-- Every seq up to `settled` is known to the far side: delivered, or told to be dropped.
ALTER TABLE streams ADD COLUMN settled INTEGER NOT NULL DEFAULT 0;

-- Dead letters: records that no worker could digest. They stay held until somebody decides.
CREATE TABLE dead (
    stream INTEGER NOT NULL REFERENCES streams,
    seq    INTEGER NOT NULL,
    cause  TEXT    NOT NULL,
    PRIMARY KEY (stream, seq)
) STRICT, WITHOUT ROWID;

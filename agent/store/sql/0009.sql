-- A dead letter that somebody asked to be tried once more: it is heard again, alone.
ALTER TABLE dead ADD COLUMN retry INTEGER NOT NULL DEFAULT 0;

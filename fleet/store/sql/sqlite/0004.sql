-- What came under seqs as which other records are stored: two lives of one epoch.
ALTER TABLE refused ADD COLUMN conflict boolean NOT NULL DEFAULT false;
CREATE INDEX refused_conflict ON refused (stream) WHERE conflict;

-- The digest (records.digest) of the record at the mark, where one is stored and that is known.
ALTER TABLE streams ADD COLUMN tail bigint

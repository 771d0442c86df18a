-- What came under seqs as which other records are stored: two lives of one epoch.
ALTER TABLE refused ADD COLUMN conflict boolean NOT NULL DEFAULT false;
CREATE INDEX refused_conflict ON refused (stream) WHERE conflict;

-- A stored record up to the mark, as high as is known, and its digest (records.digest). It may lie
-- below: an older ingest that still runs moves the mark alone.
ALTER TABLE streams ADD COLUMN tail_seq bigint;
ALTER TABLE streams ADD COLUMN tail bigint

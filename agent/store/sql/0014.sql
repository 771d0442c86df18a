-- A source by the API that gave its place to another (takes.py): its streams hold nothing, stand in
-- no ledger that is told, and keep their rows, so that their seqs go on when it comes again.
ALTER TABLE streams ADD COLUMN resting INTEGER NOT NULL DEFAULT 0;

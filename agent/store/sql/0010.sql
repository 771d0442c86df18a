-- A dead letter of the link (`unsent`): it was sent again and again, and never stored at the far
-- side, which is told of it as of a dropped range. It is sent again when `retry` is set.
ALTER TABLE dead ADD COLUMN unsent INTEGER NOT NULL DEFAULT 0;
CREATE INDEX dead_again ON dead (stream, seq) WHERE unsent AND retry;

-- The blobs that are being written while the record they will belong to is not known yet: pieces 1
-- to `next` - 1 of `blob` are in chunks. A draft that outlives its process belongs to nobody.
CREATE TABLE drafts (
    blob   INTEGER PRIMARY KEY,
    source TEXT    NOT NULL,
    next   INTEGER NOT NULL
) STRICT;

-- Of what a stream holds: the link's dead letters that are not to be sent again (`buried`), and what
-- lies above `sendable`, where that is set (`later`).
ALTER TABLE streams ADD COLUMN buried INTEGER NOT NULL DEFAULT 0;
ALTER TABLE streams ADD COLUMN buried_bytes INTEGER NOT NULL DEFAULT 0;
ALTER TABLE streams ADD COLUMN later INTEGER NOT NULL DEFAULT 0;
ALTER TABLE streams ADD COLUMN later_bytes INTEGER NOT NULL DEFAULT 0;
CREATE INDEX dead_buried ON dead (stream, seq) WHERE unsent AND NOT retry;

-- A dead letter's row comes after its record, and leaves before it.
CREATE TRIGGER dead_came AFTER INSERT ON dead WHEN new.unsent AND NOT new.retry BEGIN
    UPDATE streams SET buried = buried + 1, buried_bytes = buried_bytes + coalesce((
        SELECT length(body) + blob_bytes FROM records WHERE id = new.stream << 40 | new.seq), 0)
    WHERE id = new.stream;
END;
CREATE TRIGGER dead_left AFTER DELETE ON dead WHEN old.unsent AND NOT old.retry BEGIN
    UPDATE streams SET buried = buried - 1, buried_bytes = buried_bytes - coalesce((
        SELECT length(body) + blob_bytes FROM records WHERE id = old.stream << 40 | old.seq), 0)
    WHERE id = old.stream;
END;
CREATE TRIGGER dead_turned AFTER UPDATE OF unsent, retry ON dead
WHEN (new.unsent AND NOT new.retry) != (old.unsent AND NOT old.retry) BEGIN
    UPDATE streams SET buried = buried + iif(new.retry, -1, 1),
        buried_bytes = buried_bytes + iif(new.retry, -1, 1) * coalesce((
            SELECT length(body) + blob_bytes FROM records WHERE id = new.stream << 40 | new.seq), 0)
    WHERE id = new.stream;
END;

UPDATE streams SET buried = count, buried_bytes = size FROM (
    SELECT dead.stream AS of, count(*) AS count, sum(length(body) + blob_bytes) AS size FROM dead
    CROSS JOIN records ON records.id = dead.stream << 40 | dead.seq
    WHERE unsent AND NOT retry GROUP BY dead.stream)
WHERE id = of;
UPDATE streams SET later = count, later_bytes = size FROM (
    SELECT s.id AS of, count(*) AS count, sum(length(body) + blob_bytes) AS size FROM streams AS s
    CROSS JOIN records AS r ON r.id > s.id << 40 | s.sendable AND r.id < s.id + 1 << 40
    WHERE s.sendable IS NOT NULL GROUP BY s.id)
WHERE id = of;

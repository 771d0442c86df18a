-- A blob that lies in an object store: the sha256 of the object that was seen there, and its URL.
ALTER TABLE blobs ADD COLUMN put text NOT NULL DEFAULT '';
ALTER TABLE blobs ADD COLUMN place text NOT NULL DEFAULT '';

DROP VIEW events;
CREATE VIEW events AS
SELECT d.name AS device, s.epoch, s.name AS stream, r.seq, r.type,
    strftime('%Y-%m-%dT%H:%M:%fZ', r.time_us / 1e6, 'unixepoch') AS time, r.timebound,
    r.boot, r.mono_ns, r.blob_bytes, CAST(r.body AS text) AS body,
    nullif(b.place, '') AS blob_url
FROM records r JOIN streams s ON s.id = r.stream JOIN devices d ON d.id = s.device
LEFT JOIN blobs b ON b.stream = r.stream AND b.seq = r.seq

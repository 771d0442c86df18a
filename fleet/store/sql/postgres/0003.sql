-- A blob that lies in an object store: the sha256 of the object that was seen there, and its URL.
ALTER TABLE blobs ADD COLUMN put text NOT NULL DEFAULT '';
ALTER TABLE blobs ADD COLUMN place text NOT NULL DEFAULT '';

CREATE OR REPLACE VIEW events AS
SELECT d.name AS device, s.epoch, s.name AS stream, r.seq, r.type,
    to_timestamp(r.time_us / 1e6) AS time, r.timebound,
    r.boot, r.mono_ns, r.blob_bytes, convert_from(r.body, 'UTF8') AS body,
    nullif(b.place, '') AS blob_url
FROM records r JOIN streams s ON s.id = r.stream JOIN devices d ON d.id = s.device
LEFT JOIN blobs b ON b.stream = r.stream AND b.seq = r.seq

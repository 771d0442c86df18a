CREATE TABLE devices (
    id INTEGER PRIMARY KEY,
    name text NOT NULL UNIQUE,
    first_us bigint NOT NULL,
    online boolean,
    presence_us bigint,
    epoch text,
    version text,
    ack_from text,
    heartbeat_us bigint,
    uptime_s real,
    status text,
    conditions text
);

CREATE TABLE streams (
    id INTEGER PRIMARY KEY,
    device bigint NOT NULL REFERENCES devices (id),
    epoch text NOT NULL,
    name text NOT NULL,
    mark bigint NOT NULL DEFAULT 0,
    highest bigint NOT NULL DEFAULT 0,
    records bigint NOT NULL DEFAULT 0,
    size_bytes bigint NOT NULL DEFAULT 0,
    spans bigint NOT NULL DEFAULT 0,
    told bigint NOT NULL DEFAULT 0,
    unsettled bigint NOT NULL DEFAULT 0,
    refused bigint NOT NULL DEFAULT 0,
    touched_us bigint NOT NULL DEFAULT 0,
    said_produced bigint,
    said_delivered bigint,
    said_held bigint,
    said_dropped bigint,
    UNIQUE (device, epoch, name)
);

CREATE TABLE spans (
    stream bigint NOT NULL,
    first bigint NOT NULL,
    last bigint NOT NULL,
    since_us bigint NOT NULL,
    PRIMARY KEY (stream, first)
) WITHOUT ROWID;

CREATE TABLE told (
    stream bigint NOT NULL,
    first bigint NOT NULL,
    last bigint NOT NULL,
    reason text NOT NULL,
    PRIMARY KEY (stream, first)
) WITHOUT ROWID;

CREATE TABLE records (
    stream bigint NOT NULL,
    seq bigint NOT NULL,
    type text NOT NULL,
    time_us bigint NOT NULL,
    timebound boolean NOT NULL,
    boot text NOT NULL,
    mono_ns bigint NOT NULL,
    blob_bytes bigint NOT NULL,
    stored_us bigint NOT NULL,
    body blob NOT NULL,
    PRIMARY KEY (stream, seq)
);

CREATE TABLE blobs (
    stream bigint NOT NULL,
    seq bigint NOT NULL,
    size_bytes bigint NOT NULL,
    ready bigint NOT NULL,
    received bigint NOT NULL,
    record boolean NOT NULL,
    settled boolean NOT NULL,
    sha256 text NOT NULL,
    PRIMARY KEY (stream, seq)
) WITHOUT ROWID;
CREATE INDEX blobs_unsettled ON blobs (stream, seq) WHERE NOT settled;

CREATE TABLE pieces (
    stream bigint NOT NULL,
    seq bigint NOT NULL,
    start bigint NOT NULL,
    size_bytes bigint NOT NULL,
    content blob NOT NULL,
    PRIMARY KEY (stream, seq, start)
);

CREATE TABLE refused (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    device text NOT NULL,
    topic text NOT NULL,
    cause text NOT NULL,
    digest text NOT NULL,
    times bigint NOT NULL DEFAULT 1,
    first_us bigint NOT NULL,
    last_us bigint NOT NULL,
    stream bigint,
    first bigint,
    last bigint,
    payload blob NOT NULL,
    UNIQUE (topic, digest)
);
CREATE INDEX refused_stream ON refused (stream, first) WHERE stream IS NOT NULL;

CREATE VIEW events AS
SELECT d.name AS device, s.epoch, s.name AS stream, r.seq, r.type,
    strftime('%Y-%m-%dT%H:%M:%fZ', r.time_us / 1e6, 'unixepoch') AS time, r.timebound,
    r.boot, r.mono_ns, r.blob_bytes, CAST(r.body AS text) AS body
FROM records r JOIN streams s ON s.id = r.stream JOIN devices d ON d.id = s.device

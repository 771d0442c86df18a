-- What the controller hears of devices: their presence said `online` last, since then.
CREATE TABLE presences (
    device text PRIMARY KEY,
    online boolean NOT NULL,
    since_us bigint NOT NULL,
    version text NOT NULL
) WITH (fillfactor = 70);

CREATE TABLE tags (
    device text NOT NULL,
    tag text NOT NULL,
    PRIMARY KEY (device, tag)
);
CREATE INDEX tags_tag ON tags (tag);

-- One order to one device. `payload` is published as it stands, from `given_us` on; `due_us` says
-- when next.
-- `asked_us`: since then the device is there, and owes a word.
CREATE TABLE commands (
    device text NOT NULL,
    id text NOT NULL,
    name text NOT NULL,
    issuer text NOT NULL,
    rollout text NOT NULL,
    payload text NOT NULL,
    state text NOT NULL,
    made_us bigint NOT NULL,
    given_us bigint,
    expires_us bigint,
    due_us bigint,
    sends bigint NOT NULL DEFAULT 0,
    sent_us bigint,
    asked_us bigint,
    ended_us bigint,
    changed_us bigint NOT NULL,
    progress double precision,
    reason text NOT NULL DEFAULT '',
    message text NOT NULL DEFAULT '',
    result text,
    PRIMARY KEY (device, id)
) WITH (fillfactor = 70);
CREATE INDEX commands_id ON commands (id, state);
CREATE INDEX commands_due ON commands (due_us) WHERE due_us IS NOT NULL;
CREATE INDEX commands_expiring ON commands (expires_us) WHERE ended_us IS NULL;
CREATE INDEX commands_changed ON commands (changed_us);

-- A command sent to many in steps. `plan` is JSON; `settled_us`: since then its step soaks; what
-- ended before `judged_us` is no evidence any more.
CREATE TABLE rollouts (
    id text PRIMARY KEY,
    state text NOT NULL,
    cause text NOT NULL,
    plan text NOT NULL,
    step bigint NOT NULL,
    settled_us bigint,
    judged_us bigint NOT NULL,
    made_us bigint NOT NULL,
    changed_us bigint NOT NULL
);

-- The order of its devices. `late_us`: it owed a word for too long then.
CREATE TABLE members (
    rollout text NOT NULL,
    place bigint NOT NULL,
    device text NOT NULL,
    late_us bigint,
    PRIMARY KEY (rollout, place),
    UNIQUE (rollout, device)
);

-- Documents: `desired` is `version` of what the fleet wants, to be published while `due`.
CREATE TABLE twins (
    device text PRIMARY KEY,
    version bigint NOT NULL,
    desired text,
    due boolean NOT NULL,
    desired_us bigint,
    reported text,
    reported_us bigint
);

-- Who alone may act. `beat` moves while the holder lives.
CREATE TABLE leases (
    name text PRIMARY KEY,
    holder text NOT NULL,
    beat bigint NOT NULL
)

-- Whose signature a bundle of a device may have.
CREATE TABLE bundle_keys (
    device text NOT NULL,
    key text NOT NULL,
    since_us bigint NOT NULL,
    PRIMARY KEY (device, key)
);

-- The parts of exports that were imported. `follows` is the digest of the part before.
CREATE TABLE bundle_parts (
    device text NOT NULL,
    export text NOT NULL,
    part bigint NOT NULL,
    digest text NOT NULL,
    follows text NOT NULL,
    more boolean NOT NULL,
    imported_us bigint NOT NULL,
    PRIMARY KEY (device, export, part)
);

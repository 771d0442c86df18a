-- Devices that were taken out of the fleet, since then: nothing is ordered of them.
CREATE TABLE retired (
    device text PRIMARY KEY,
    since_us bigint NOT NULL
)

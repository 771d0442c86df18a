"""What a condition may be called. Whoever raises another one is stopped by the type checker.

Each name has its words on the status page (api/page/conditions.js) and its line in docs/health.md;
a name stays what it is, for others ask for it.
"""

from typing import Literal

Name = Literal[
    "ack_missing",
    "ack_refused",
    "api_certificate",
    "api_loopback_only",
    "blobs_in_pieces",
    "broker_fallback",
    "broker_features",
    "broker_refused",
    "client_id_twice",
    "clock_untrusted",
    "dead_letters",
    "device_fallback",
    "domain_down",
    "domains_not_applied",
    "embedded_broker",
    "flash_wearing",
    "grant_refused",
    "hearing_stopped",
    "heartbeat_too_large",
    "held_back",
    "hours_not_followed",
    "limits_not_held",
    "link_down",
    "nobody_listens",
    "part_stands_still",
    "quota_reached",
    "snapshot_unwritable",
    "sound_lost",
    "source_unreadable",
    "store_damaged",
    "store_evicting",
    "store_expiring",
    "store_full",
    "store_quarantined",
    "store_unreadable",
    "store_unwritable",
    "sync_limited",
    "sync_paused",
    "tokens_exposed",
    "tokens_unreadable",
    "tokens_unwritten",
    "version_refused",
    "watchdog_short",
    "watchdog_unarmed",
]

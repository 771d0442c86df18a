"""The cloud side: ingest into a database, bundles from sticks, what is known of each device."""

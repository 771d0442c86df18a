"""The status page as files: no build step, no outside resource, no data of the device."""

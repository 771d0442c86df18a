"""Models in processes of their own: the catalog of what is on disk, the domains that run it."""

"""The store under kill -9, power cuts, sick disks and full ones."""

"""What goes up: leases become batches and pieces, many in flight, until they are acknowledged."""

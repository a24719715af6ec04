"""A batch, many jobs in one task: read and check the rows, decide, submit in waves, watch, land, account."""

"""Whether this machine can do the work: one finding for each requirement."""

"""Which models there are, and the one that is in memory."""

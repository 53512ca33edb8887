"""A page beside the Dagster UI for trying things: one image at a time, looked at and compared."""

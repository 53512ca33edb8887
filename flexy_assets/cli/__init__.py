"""The `flexy` command: starts the same assets and jobs that the Dagster UI shows. Importing it imports click alone."""

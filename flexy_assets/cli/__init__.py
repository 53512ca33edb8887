"""The `flexy` command."""

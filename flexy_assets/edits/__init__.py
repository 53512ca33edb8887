"""Edits: searches for the best of several candidates, and their comparison."""

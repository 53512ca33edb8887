"""Edits: searches for the best of several tries, and what they are worth against each other."""

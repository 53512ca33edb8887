"""Computes the scores that are missing, for every product."""

"""Benchmarks: each runs by name (`python -m benchmarks.NAME`), prints a table and writes JSON."""

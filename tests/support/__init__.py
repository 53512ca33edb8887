"""Servers, browsers, databases and references that tests and benchmarks share."""

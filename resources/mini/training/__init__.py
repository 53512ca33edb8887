"""Trains the mini weights; nothing in production imports it."""

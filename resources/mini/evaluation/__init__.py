"""Measures mini models against the ground truth of the drawn world; nothing in production imports it."""

"""Tables, migrations and queries: the only SQL in the house."""

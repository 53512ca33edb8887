"""HTTP: the client, retries, downloads and the addresses that may be reached."""

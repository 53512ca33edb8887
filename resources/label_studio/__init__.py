"""Label Studio: its REST API and its exports."""

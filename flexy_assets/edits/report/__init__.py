"""The comparison's report: one HTML file with the answer, the figures and every candidate."""

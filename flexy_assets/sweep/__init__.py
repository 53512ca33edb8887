"""The sweep: plan, images, scores, CSV, analysis, report."""

"""The sweep's report: one HTML file with the answer, the plots and the images."""

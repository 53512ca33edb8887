"""What all reports share: page shell, scripts, thumbnails, text tables, column descriptions, plots."""

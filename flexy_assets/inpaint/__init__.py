"""Inpainting: character faces of Label Studio tasks, corrected inside their masks and sent back for review."""

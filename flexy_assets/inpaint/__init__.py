"""Inpainting: character faces of Label Studio tasks put right inside their masks, and sent back for review."""

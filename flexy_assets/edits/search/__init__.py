"""Search methods for image edits: EACPS and TTFLUX, their selectors, and what runs them."""

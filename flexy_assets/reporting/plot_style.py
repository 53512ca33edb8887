"""Colours and sizes of all plots: legible on white and on black."""

from typing import Final

INK: Final = "#767676"
"""Text and axes of a picture without a page around it: as far from white as from black, by contrast."""
COLOURS: Final = ("#3b7dc4", "#d9653b", "#2f9a6b", "#a065c4", "#a8842c")
"""Of engines and methods, in their order."""
DOMINATED_COLOUR: Final = "#8a8a84"
BAND_OPACITY: Final = 0.28
"""Opacity of an interval behind its line."""

# Both scales keep to middle lightness. The diverging one is half transparent, because text is written on it.
SEQUENTIAL: Final = ("#2f6fb7", "#7a67c7", "#c25c9c", "#e2705a", "#e6a23c")
DIVERGING: Final = ((0.0, "rgba(59,125,196,0.55)"), (0.5, "rgba(128,128,128,0.1)"), (1.0, "rgba(217,101,59,0.55)"))


def translucent(colour: str, opacity: float = BAND_OPACITY) -> str:
    """A colour `#rrggbb` as Plotly's `rgba(…)`."""
    red, green, blue = (int(colour[place : place + 2], 16) for place in (1, 3, 5))
    return f"rgba({red},{green},{blue},{opacity})"


def colour_scale(colours: tuple[str, ...]) -> list[tuple[float, str]]:
    """Plotly's scale of evenly spaced colours."""
    return [(index / (len(colours) - 1), colour) for index, colour in enumerate(colours)]

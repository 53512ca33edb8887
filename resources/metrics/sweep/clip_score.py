"""How well an image fits its prompt."""

from resources.metrics import Metric

METRICS = (
    Metric(
        name="clip_score",
        label="CLIP score",
        description="how well the image fits its prompt: the cosine of the two (CLIP ViT-L/14)",
        low=-1,
        high=1,
        reads="clip",
        column=True,
        scorer="clip",
        order=0,
    ),
)

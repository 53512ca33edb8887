"""The metrics of every product: one record each, declared in one light file.

A new metric of a product is one file in the product's package here (`resources/metrics/sweep/`, `edits/`,
`inpaint/`) with a tuple `METRICS`. What computes it is named as "module:callable" and imported when it is wanted:
importing the declarations loads no model library.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import partial
from importlib import import_module
from pkgutil import iter_modules
from typing import Final, Literal, get_args

Product = Literal["sweep", "edits", "inpaint"]
PRODUCTS: Final[tuple[Product, ...]] = get_args(Product)

Role = Literal["selecting", "independent", "ground truth"]
"""Whether a search selects by a metric, or it had no part in the selection, or it knows the right answer."""


@dataclass(frozen=True)
class Metric:
    """One score of one image.

    `name` is its name in `image_scores` and, with `column`, of its column in `bench_run_results`. `low` and `high`
    bound its valid values, in `unit`. `reads` names the encoder from whose embeddings it is computed; without it, it
    is computed from images. `scorer` is the registry entry that computes it, or a "module:callable" that needs no
    weights (of edits and inpainting: `resources.metrics.scoring`; by default, `score` of the declaring module). With
    `by_judge` it is computed one image at a time, and again after an error. Values that differ by at most `tie` are
    equal. A mean of many images below `lowest_mean` says that the prompts were not those of the images. `prompts`
    is the column, `TABLE.COLUMN`, that alone its prompts come from. Tables show metrics by `order`.
    """

    name: str
    label: str
    description: str
    low: float
    high: float
    unit: str = ""
    higher_is_better: bool = True
    role: Role | None = None
    reads: str | None = None
    column: bool = False
    scorer: str | None = None
    by_judge: bool = False
    tie: float = 1e-9
    lowest_mean: float | None = None
    prompts: str = ""
    order: int = 100

    @property
    def uses_prompt(self) -> bool:
        """Whether a sweep's metric compares the image with its prompt."""
        return self.reads is None or self.reads == self.scorer

    @property
    def beside(self) -> Metric:
        """The same metric as Flexy computes it, kept beside its column: in `image_scores` alone."""
        return replace(self, name=f"{self.name}_flexy", column=False)


SelectingMetric = partial(Metric, role="selecting")
"""A metric that searches select by."""


def metrics(product: Product) -> dict[str, Metric]:
    """Return a product's metrics by name, in the order that tables show them."""
    declared: dict[str, Metric] = import_module(f"{__name__}.{product}").METRICS
    return declared


def discover_metrics(package: str, paths: Iterable[str]) -> dict[str, Metric]:
    """Return what the modules of a package declare in `METRICS`, by name; a module's `score` is their default scorer.

    Raises ValueError for a name that is declared twice.
    """
    declared: list[Metric] = []
    for name in [f"{package}.{module.name}" for module in iter_modules(paths)]:
        module = import_module(name)
        scorer = f"{name}:score" if hasattr(module, "score") else None
        declared += [replace(metric, scorer=metric.scorer or scorer) for metric in module.METRICS]
    declared.sort(key=lambda metric: metric.order)
    for name, count in Counter(metric.name for metric in declared).items():
        if count > 1:
            raise ValueError(f"metric {name!r} is declared {count} times in {package}")
    return {metric.name: metric for metric in declared}

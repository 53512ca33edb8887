"""Differences between our scores and the reference implementations': `python -m benchmarks.parity [--full]`.

Identical weights, fp32, the same files. Prints a table, writes benchmarks/results/parity.json, and ends with status
1 where a difference is above 1e-4 of the score's range. Small random models of the published
classes by default; with --full ViT-L/14, ViT-H/14 and VGG16 themselves.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from benchmarks import argument_parser, print_table, write_results
from resources.images import ImageStore
from resources.scorers import aesthetic
from resources.scorers.clip import ClipEncoder
from resources.scorers.hps import HpsScorer
from resources.scorers.perceptual import LpipsScorer
from tests.support import references

MAX_DIFFERENCE = 1e-4
"""The largest difference allowed, as a share of the score's range."""

MAX_RESIZE_DIFFERENCE = 3e-4
"""The same where the reference resizes with torchvision: the reference differs by as much between versions of
transformers."""

MAX_HALF_PRECISION_DIFFERENCE = {"fp16": 1e-3, "bf16": 5e-3}
"""The same for half precision against full."""

SIZES = ((512, 512), (1024, 1024), (640, 360), (360, 640), (224, 224), (91, 37), (1000, 250), (333, 500), (17, 64))

# Modes that every reader converts to the same RGB; other modes are tested separately.
WORDS = ("red", "an old", "castle", "of glass", "portrait", "at dawn", "in rain", "1920s", "fox", "two", "neon", "oil")

FORMS = (("RGB", "png"), ("L", "png"), ("P", "png"), ("RGB", "jpeg"), ("CMYK", "jpeg"), ("RGB", "webp"), ("1", "png"))


def draw_images(folder: Path, count: int, seed: int = 0) -> list[Path]:
    """Write `count` drawn images of many sizes, aspect ratios, modes and formats; return their paths."""
    rng = np.random.default_rng(seed)
    drawn = []
    for index in range(count):
        width, height = SIZES[index % len(SIZES)]
        mode, form = FORMS[index % len(FORMS)]
        ramp = np.linspace(rng.integers(0, 256, 3), rng.integers(0, 256, 3), height)[:, None].repeat(width, 1)
        noise = rng.normal(0, rng.uniform(0, 40), ramp.shape)
        picture = Image.fromarray(np.clip(ramp + noise, 0, 255).astype(np.uint8))
        pencil = ImageDraw.Draw(picture)
        for _ in range(rng.integers(3, 12)):
            x, y = rng.uniform(0, width), rng.uniform(0, height)
            w, h = rng.uniform(1, width), rng.uniform(1, height)
            shape = (pencil.ellipse, pencil.rectangle)[rng.integers(2)]
            shape((x, y, x + w, y + h), fill=tuple(int(value) for value in rng.integers(0, 256, 3)))
        path = folder / f"{index:03d}_{width}x{height}_{mode}.{form}"
        picture.convert(mode).save(path)
        drawn.append(path)
    return drawn


@dataclass(frozen=True)
class Difference:
    """Our scores compared with a reference's over `pictures` images; `spread` is the reference's standard deviation."""

    scorer: str
    reference: str
    model: str
    pictures: int
    largest: float
    mean: float
    spread: float
    bar: float

    @classmethod
    def of(
        cls,
        names: tuple[str, str, str],
        span: float,
        theirs: Sequence[float] | NDArray[np.floating],
        ours: NDArray[np.floating],
        share: float = MAX_DIFFERENCE,
    ) -> Difference:
        apart = np.abs(np.asarray(theirs) - ours)
        figures = (float(apart.max()), float(apart.mean()), float(np.std(theirs)), share * span)
        return cls(*names, len(ours), *figures)


def compare_scorers(folder: Path, pictures: int, full: bool) -> list[Difference]:
    """Return the differences of every scorer, on models written below `folder`."""
    references.install()
    (folder / "pictures").mkdir()
    files = draw_images(folder / "pictures", pictures)
    store = ImageStore(str(folder / "pictures"))
    read = [store.read(file.name) for file in files]
    clip = references.save_clip(folder / "clip", full)
    return [
        *compare_clip_and_aesthetic(folder, clip, files, read, full),
        *list(compare_open_clip(folder, clip, files, read, full))[:-1],
        compare_hps(folder, clip, files, read, full),
        compare_lpips(folder, files, read),
        # A CPU computes in half precision many times slower than in full.
        *compare_half_precision(folder, clip, files[: 8 if full else None], read[: 8 if full else None], full),
    ]


def compare_clip_and_aesthetic(
    folder: Path, clip: Path, files: Sequence[Path], read: Sequence[Image.Image], full: bool
) -> Iterator[Difference]:
    """CLIP score, V1 and V2, resized by Pillow on both sides and, with the small model, by torchvision on theirs."""
    model = "ViT-L/14" if full else "small CLIP"
    encoder = ClipEncoder(clip)
    vectors = _in_parts(encoder.embed, read)
    # torchmetrics cuts a long prompt's end token off (its issue 2883), so it gets short ones; and it reports
    # 0 for a cosine below, so each picture gets the prompt it fits best.
    rng = np.random.default_rng(0)
    prompts = [" ".join(rng.choice(WORDS, 5)) for _ in range(64)]
    cosines = vectors.astype(np.float64) @ np.concatenate([encoder.texts(prompts[:9]), encoder.texts(prompts[9:])]).T
    chosen = [prompts[which] for which in cosines.argmax(axis=1)]
    predictors = {version: references.save_predictor(folder / f"v{version}", clip, version) for version in (1, 2)}
    resizes = [(True, "", MAX_DIFFERENCE), (False, ", torchvision's resize", MAX_RESIZE_DIFFERENCE)]
    for pillow, resize, share in resizes[: 1 if full else 2]:
        theirs = references.clip_score(clip, pillow)
        yield Difference.of(
            ("CLIP score", f"torchmetrics 1.9.0{resize}", model),
            1.0,
            [theirs(file, prompt) for file, prompt in zip(files, chosen, strict=True)],
            np.maximum(cosines.max(axis=1), 0),
            share,
        )
        for version, predictor in predictors.items():
            score = references.aesthetic(predictor, version, pillow)
            yield Difference.of(
                (f"Aesthetic {references.HEADS[version]}", f"simple-aesthetics-predictor 0.1.2{resize}", model),
                9.0,
                [score(file, "") for file in files],
                aesthetic.load_aesthetic(predictor, references.HEADS[version]).score_embeddings(vectors),
                share,
            )


def compare_open_clip(
    folder: Path, clip: Path, files: Sequence[Path], read: Sequence[Image.Image], full: bool
) -> Iterator[Difference]:
    """CLIP score and LAION's MLP by open_clip, with QuickGELU and without; last, our QuickGELU against its GELU."""
    model = "ViT-L/14" if full else "small CLIP"
    head = references.save_laion_head(folder / "laion", 768 if full else 96)
    ours = aesthetic.load_aesthetic(head.parent, "mlp")
    # torchvision, by which open_clip crops, leaves an odd margin's last pixel on the other side than transformers.
    even = [i for i, image in enumerate(read) if int(224 * max(image.size) / min(image.size)) % 2 == 0]
    files, read = [files[i] for i in even], [read[i] for i in even]
    # open_clip's tokenizer resolves HTML entities, CLIP's own leaves them.
    plain = [prompt for prompt in references.PROMPTS if "&" not in prompt]
    prompts = [plain[index % len(plain)] for index in range(len(files))]
    for activation in (None, "gelu"):
        theirs = references.OpenClip(clip, quick_gelu=activation is None)
        encoder = ClipEncoder(clip, activation=activation)
        seen, seen_by_theirs = _in_parts(encoder.embed, read), theirs.images(files)
        cosines = np.einsum("nd,nd->n", seen, _in_parts(encoder.texts, prompts))
        their_cosines = np.einsum("nd,nd->n", seen_by_theirs, theirs.texts(prompts))
        name = f"open_clip {'without' if activation else 'with'} QuickGELU"
        yield Difference.of(("CLIP score", name, model), 1.0, their_cosines, cosines)
        scores = references.laion_scores(head, seen_by_theirs)
        yield Difference.of(("Aesthetic mlp", f"LAION's MLP, {name}", model), 9.0, scores, ours.score_embeddings(seen))
        if activation is None:
            ours_with = cosines
    yield Difference.of(("CLIP score with QuickGELU", name, model), 1.0, their_cosines, ours_with)


def compare_hps(folder: Path, clip: Path, files: Sequence[Path], read: Sequence[Image.Image], full: bool) -> Difference:
    """HPS v2.1, over prompts that are long, in HTML, and not in ASCII."""
    checkpoint = references.save_hps(folder / "hps", full)
    prompts = [references.PROMPTS[index % len(references.PROMPTS)] for index in range(len(files))]
    ours = _hps_scores(HpsScorer(checkpoint.parent, tokenizer=clip), read, prompts)
    score = references.hps(checkpoint, full)
    return Difference.of(
        ("HPS v2.1", "hpsv2 1.2.0", "ViT-H/14" if full else "small open_clip"),
        1.0,
        [score(file, prompt) for file, prompt in zip(files, prompts, strict=True)],
        ours,
    )


def _hps_scores(scorer: HpsScorer, read: Sequence[Image.Image], prompts: Sequence[str]) -> NDArray[np.float32]:
    pairs = [(scorer.prepare(picture), prompt) for picture, prompt in zip(read, prompts, strict=True)]
    return _in_parts(lambda part: scorer.scores(*zip(*part, strict=True)), pairs)


def compare_half_precision(
    folder: Path, clip: Path, files: Sequence[Path], read: Sequence[Image.Image], full: bool
) -> Iterator[Difference]:
    """Yield the differences of our scores in half precision from those in fp32."""
    heads = {
        form: aesthetic.load_aesthetic(references.save_predictor(folder / f"half{version}", clip, version), form)
        for version, form in references.HEADS.items()
    }
    checkpoint = references.save_hps(folder / "half_hps", full)
    prompts = [references.PROMPTS[index % len(references.PROMPTS)] for index in range(len(files))]
    values: dict[str, dict[tuple[str, float], NDArray[np.floating]]] = {}
    for precision in ("fp32", "bf16", "fp16"):
        encoder = ClipEncoder(clip, precision)
        vectors = _in_parts(encoder.embed, read)
        cosines = np.einsum("nd,nd->n", vectors, _in_parts(encoder.texts, prompts))
        values[precision] = {("CLIP score", 1.0): cosines}
        for form, head in heads.items():
            values[precision][f"Aesthetic {form}", 9.0] = head.score_embeddings(vectors)
        del encoder
        scorer = HpsScorer(checkpoint.parent, precision, tokenizer=clip)
        values[precision]["HPS v2.1", 1.0] = _hps_scores(scorer, read, prompts)
        del scorer
    for (name, span), whole in values["fp32"].items():
        for precision, tolerance in MAX_HALF_PRECISION_DIFFERENCE.items():
            names = (f"{name} in {precision}", "ours in fp32", "as above")
            yield Difference.of(names, span, whole, values[precision][name, span], tolerance)


def compare_lpips(folder: Path, files: Sequence[Path], read: Sequence[Image.Image]) -> Difference:
    """Return the difference of LPIPS between each image and the next."""
    scorer = LpipsScorer(references.save_vgg(folder / "torch"))
    distance = references.lpips(folder / "torch")
    prepared = [scorer.prepare(picture) for picture in read]
    pairs = list(zip(prepared, prepared[1:] + prepared[:1], strict=True))
    return Difference.of(
        ("LPIPS", "lpips 0.1.4", "VGG16"),
        1.0,
        [distance(*pair) for pair in zip(files, [*files[1:], files[0]], strict=True)],
        _in_parts(lambda part: scorer.distances(*zip(*part, strict=True)), pairs),
    )


def _in_parts(call: Callable[[Sequence], NDArray[np.float32]], items: Sequence) -> NDArray[np.float32]:
    # Parts of many sizes: a score must not depend on its neighbours.
    return np.concatenate([call(items[start : start + 7]) for start in range(0, len(items), 7)])


def main() -> None:
    parser = argument_parser(__doc__, "parity")
    parser.add_argument("--full", action="store_true", help="the full-size architectures; minutes instead of seconds")
    parser.add_argument("--pictures", type=int, default=63)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        differences = compare_scorers(Path(folder), options.pictures, options.full)
    rows = [asdict(difference) for difference in differences]
    print_table(rows, "scorer", "reference", "model", "pictures", "largest", "mean", "bar")
    out = options.out.with_stem(f"{options.out.stem}_full") if options.full else options.out
    write_results(out, rows)
    print(f"written to {out}")
    sys.exit(any(difference.largest > difference.bar for difference in differences))


if __name__ == "__main__":
    main()

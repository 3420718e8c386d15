"""What settings are chosen on: held-out good images, corrupted copies of some of them, and the figures there."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image

from blemish.data.corrupt import KINDS, corrupt
from blemish.data.split import split
from blemish.evaluation.detection import auroc, average_precision
from blemish.evaluation.localisation import collect, evaluation_size, pixel_figures, reduce_mask, thresholds_for
from blemish.images import load_image, load_mask, read_size
from blemish.types import BlemishError, Prediction, Progress, Sample, silent

FIGURES = ("choice", "image_auroc", "average_precision", "pixel_auroc", "aupro", "best_iou")
FEWEST = 8  # images held out, where half of the training images are that many
COPIES = 3  # corrupted ones of a held-out image, each of another kind


def hold_out(
    train: Sequence[Sample],
    share: float,
    seed: int,
    groups: Sequence[Sequence[str]] = (),
) -> tuple[tuple[Sample, ...], tuple[Sample, ...]]:
    """Divides `train` into what is learned from and `share` (at least FEWEST images, at most half) to choose with.
    Images of one item, and those of the same of `groups` (names of near duplicates), stay together."""
    if not 0 < share < 1:
        raise BlemishError(f"The share validation is {share}; it must be above 0 and below 1.")
    place = {sample.name: index for index, sample in enumerate(train)}
    together = [[place[name] for name in group if name in place] for group in groups]
    parts = split(
        [replace(sample, split="") for sample in train],
        seed=seed,
        test=0.0,
        calibration=share,
        min_calibration=FEWEST,
        groups=[group for group in together if group],
    )
    if len(parts.calibration) < 2:
        raise BlemishError("Choosing takes at least 2 held-out good images, and there is 1; add good images.")
    return parts.train, parts.calibration


def write_validation(
    folder: Path, held_out: Sequence[Sample], learning: Sequence[Sample], seed: int, progress: Progress = silent
) -> None:
    """`test/good`, `test/KIND` and `ground_truth/KIND` in `folder`, laid out as in MVTec AD. Half of the held-out
    images, chosen by `seed`, stay good; of each other one COPIES are corrupted, each in another way where the image
    allows it. Foreign pieces come from `learning`."""
    random = np.random.default_rng(seed)
    corrupted = set(random.permutation(len(held_out))[: len(held_out) // 2].tolist())
    for number, sample in enumerate(progress(held_out, "corrupting", len(held_out))):
        image = load_image(sample.path)
        name = f"{number:04}-{sample.path.stem}"
        if number not in corrupted:
            _save(folder / f"test/good/{name}.png", image)
            continue
        for copy in range(COPIES):
            other = load_image(learning[int(random.integers(len(learning)))].path)
            made = corrupt(image, random, others=[other], first=KINDS[(number + copy) % len(KINDS)])
            _save(folder / f"test/{made.kind}/{name}-{copy + 1}.png", made.image)
            _save(folder / f"ground_truth/{made.kind}/{name}-{copy + 1}_mask.png", made.mask.astype(np.uint8) * 255)


def _save(file: Path, pixels: np.ndarray) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(file)


def read_validation(folder: Path) -> list[Sample]:
    """The validation part in `folder`, as `write_validation` left it, in order of name."""
    found = []
    for file in sorted((folder / "test").glob("*/*.png")):
        kind, name = file.parent.name, file.relative_to(folder).as_posix()
        mask = folder / f"ground_truth/{kind}/{file.stem}_mask.png"
        good = kind == "good"
        found.append(Sample(file, name, "good") if good else Sample(file, name, "anomaly", kind, mask))
    return found


def measure(samples: Sequence[Sample], found: Prediction) -> dict[str, float]:
    """FIGURES of good images and anomalies with masks, each in 0..1; see docs/metrics.md. `choice` is the mean of the
    AUROC of images and that of pixels. Raises `BlemishError` for scores or maps that are not finite."""
    if not (np.isfinite(found.scores).all() and np.isfinite(found.maps).all()):
        raise BlemishError("The detector's scores or maps are not finite: its training diverged; take a lower rate.")
    labels = np.array([sample.label == "anomaly" for sample in samples])
    sizes = [read_size(sample.path) for sample in samples]
    masks = [
        reduce_mask(load_mask(s.mask, (height, width)), evaluation_size((width, height))) if s.mask else None
        for s, (width, height) in zip(samples, sizes, strict=True)
    ]
    thresholds = thresholds_for(list(found.maps), masks, sizes)
    pixels = pixel_figures(collect(zip(found.maps, masks, sizes, strict=True), thresholds), np.ones((1, len(samples))))
    places = {name: float(pixels[name][0]) for name in ("pixel_auroc", "aupro", "best_iou")}
    image_auroc = auroc(found.scores, labels)
    return {
        "choice": (image_auroc + places["pixel_auroc"]) / 2,
        "image_auroc": image_auroc,
        "average_precision": average_precision(found.scores, labels),
        **places,
    }


def digest(samples: Iterable[Sample]) -> str:
    """Of all that an image says: its name, label and bytes, its part and item, and its mask."""
    total = hashlib.sha256()
    for sample in sorted(samples, key=lambda s: s.name):
        said = [sample.name, sample.label, sample.defect, sample.split, sample.group]
        for content in (json.dumps(said).encode(), sample.path.read_bytes(), sample.mask and sample.mask.read_bytes()):
            total.update(hashlib.sha256(content or b"").digest())
    return total.hexdigest()

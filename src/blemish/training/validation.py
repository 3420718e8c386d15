"""The validation split of a sweep: held-out good images, corrupted copies of some of them, and the figures on them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image

from blemish.data.content import fingerprint
from blemish.data.corrupt import KINDS, corrupt
from blemish.data.split import split
from blemish.evaluation.detection import auroc, average_precision
from blemish.evaluation.localisation import collect, evaluation_size, pixel_figures, reduce_mask, thresholds_for
from blemish.images import decode, find_images, load_mask, read_size
from blemish.types import BlemishError, Prediction, Progress, Sample, TooFewError, silent

FIGURES = ("choice", "image_auroc", "average_precision", "pixel_auroc", "aupro", "best_iou")
FEWEST = 8  # images held out, if that is at most half of the training images
COPIES = 3  # corrupted copies of one held-out image, each of another kind


def hold_out(
    train: Sequence[Sample],
    share: float,
    seed: int,
    groups: Sequence[Sequence[str]] = (),
) -> tuple[tuple[Sample, ...], tuple[Sample, ...]]:
    """Splits `train` into the images to learn from and the validation images: `share` of `train`, at least FEWEST
    images, at most half. Images of one item, or of one of the `groups` (names of near duplicates), stay together."""
    if not 0 < share < 1:
        raise BlemishError(f"The share validation is {share}; it must be above 0 and below 1.")
    index_of = {sample.name: index for index, sample in enumerate(train)}
    index_groups = [[index_of[name] for name in group if name in index_of] for group in groups]
    splits = split(
        [replace(sample, split="") for sample in train],
        seed=seed,
        test=0.0,
        calibration=share,
        min_calibration=FEWEST,
        groups=[group for group in index_groups if group],
    )
    if len(splits.calibration) < 2:
        raise TooFewError("A sweep needs at least 2 held-out good images, and there is 1; add good images.")
    return splits.train, splits.calibration


def write_validation(
    folder: Path, held_out: Sequence[Sample], learning: Sequence[Sample], seed: int, progress: Progress = silent
) -> None:
    """Writes `test/good`, `test/KIND` and `ground_truth/KIND` into `folder`, in the layout of MVTec AD. Half of the
    held-out images, chosen by `seed`, stay good. Each of the others gets COPIES corrupted copies, each of another kind
    if the image allows it. Foreign pieces come from `learning`."""
    random = np.random.default_rng(seed)
    to_corrupt = set(random.permutation(len(held_out))[: len(held_out) // 2].tolist())
    for number, sample in enumerate(progress(held_out, "corrupting", len(held_out))):
        image = decode(sample)
        name = f"{number:04}-{sample.path.stem}"
        if number not in to_corrupt:
            _save(folder / f"test/good/{name}.png", image)
            continue
        for copy in range(COPIES):
            other = decode(learning[int(random.integers(len(learning)))])
            corrupted_copy = corrupt(image, random, others=[other], first=KINDS[(number + copy) % len(KINDS)])
            _save(folder / f"test/{corrupted_copy.kind}/{name}-{copy + 1}.png", corrupted_copy.image)
            _save(
                folder / f"ground_truth/{corrupted_copy.kind}/{name}-{copy + 1}_mask.png",
                corrupted_copy.mask.astype(np.uint8) * 255,
            )


def _save(file: Path, pixels: np.ndarray) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(file)


def read_validation(folder: Path) -> list[Sample]:
    """The validation split that `write_validation` wrote into `folder`, sorted by name."""
    samples = []
    for file in sorted((folder / "test").glob("*/*.png")):
        kind, name = file.parent.name, file.relative_to(folder).as_posix()
        mask = folder / f"ground_truth/{kind}/{file.stem}_mask.png"
        good = kind == "good"
        samples.append(Sample(file, name, "good") if good else Sample(file, name, "anomaly", kind, mask))
    return samples


def measure(samples: Sequence[Sample], prediction: Prediction) -> dict[str, float]:
    """FIGURES of good images and anomalies with masks, each in 0..1; see docs/metrics.md. `choice` is the mean of
    image AUROC and pixel AUROC. Raises `BlemishError` for scores or maps that are not finite."""
    if not (np.isfinite(prediction.scores).all() and np.isfinite(prediction.maps).all()):
        raise BlemishError(
            "The detector's scores or maps are not finite: its training diverged; use a lower learning rate."
        )
    labels = np.array([sample.label == "anomaly" for sample in samples])
    sizes = [read_size(sample.path) for sample in samples]
    masks = [
        reduce_mask(load_mask(s.mask, (height, width)), evaluation_size((width, height))) if s.mask else None
        for s, (width, height) in zip(samples, sizes, strict=True)
    ]
    thresholds = thresholds_for(list(prediction.maps), masks, sizes)
    pixels = pixel_figures(
        collect(zip(prediction.maps, masks, sizes, strict=True), thresholds), np.ones((1, len(samples)))
    )
    localisation = {name: float(pixels[name][0]) for name in ("pixel_auroc", "aupro", "best_iou")}
    image_auroc = auroc(prediction.scores, labels)
    return {
        "choice": (image_auroc + localisation["pixel_auroc"]) / 2,
        "image_auroc": image_auroc,
        "average_precision": average_precision(prediction.scores, labels),
        **localisation,
    }


def _mask_files(mask: Path | None) -> list[Path]:
    """A mask's file, or the files of a folder of masks, which are united."""
    if mask is None:
        return []
    return find_images(mask) if mask.is_dir() else [mask]


def digest(samples: Iterable[Sample]) -> str:
    """SHA-256 over the names, labels, defect types, splits, items, image bytes and mask bytes of the samples."""
    total = hashlib.sha256()
    for sample in sorted(samples, key=lambda s: s.name):
        record = [sample.name, sample.label, sample.defect, sample.split, sample.group]
        mask = b"".join(file.read_bytes() for file in _mask_files(sample.mask))
        total.update(hashlib.sha256(json.dumps(record).encode()).digest())
        total.update(bytes.fromhex(fingerprint(sample)))
        total.update(hashlib.sha256(mask).digest())
    return total.hexdigest()

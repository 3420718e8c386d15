"""`blemish serve RUN --images FOLDER`: the labelled images that a bundle learned from and was tested with become
labelled images of its product, so that it can be learned again. They have no verdict. To import twice changes nothing.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image as Pixels
from sqlalchemy import select
from sqlalchemy.orm import Session

from blemish.data import layouts
from blemish.images import ImageError, load_image, load_mask
from blemish.inference import bundle
from blemish.reporting.run import names_tested
from blemish.types import BlemishError, Progress, Sample, readable, silent
from blemish.web import review
from blemish.web.database import Database
from blemish.web.dataset import split_of
from blemish.web.detectors import Detectors
from blemish.web.standing import IMPORTED
from blemish.web.store import Store, ending_of, sha256
from blemish.web.tables import Detector, Image, Verdict, now

BATCH = 200  # images in a transaction
BY = IMPORTED  # who labelled them


@dataclass(frozen=True)
class Imported:
    """What came of a folder: the product, how many images are new, a sentence for each that could not be read, and
    whether it is known which images the versions learned from."""

    product: str
    new: int
    skipped: tuple[str, ...] = ()
    known: bool = True


@dataclass(frozen=True)
class _Source:
    """The versions that learned from a folder: their product, layout, and the names that all of them only tested."""

    product: str
    card: bundle.Card
    held_out: frozenset[str] | None  # None: no version says


def bring_images(
    folder: Path, database: Database, store: Store, detectors: Detectors, progress: Progress = silent
) -> Imported:
    """Imports the labelled images of `folder`. An image that is known and labelled stays as it is.

    Each keeps its split: what the versions' runs were tested with is held out, all others are learned from; without
    such runs the folder's own split counts, and where it has none `split_of`. Raises `BlemishError` where no bundle
    names the folder as its data, or it cannot be read.
    """
    source = _source(folder, detectors)
    layout = source.card.data.layout
    dataset = layouts.read(folder, layout if layout in layouts.LAYOUTS else "auto")
    samples = [sample for sample in dataset.samples if sample.label]
    if not samples:
        raise BlemishError(f"{folder}: has no labelled images to import; put them into folders by their labels.")
    skipped: list[str] = []
    with database.reading() as session:
        known = select(Image.name).where(Image.product == source.product, Image.item != "")
        names = set(session.scalars(known))  # so that a second start reads no image again
    unknown = [sample for sample in samples if readable(sample.name) not in names]
    rows = _rows(unknown, source, store, skipped)
    waiting = progress(rows, f"importing {folder.name}", len(unknown)) if unknown else rows
    new, batch = 0, list[Image]()
    for row in waiting:
        batch.append(row)
        if len(batch) >= BATCH:
            new += _write(database, source, batch)
            batch = []
    divided = any(sample.split == "test" for sample in samples) and not source.card.data.pooled
    known_split = divided or source.held_out is not None
    return Imported(source.product, new + _write(database, source, batch), tuple(skipped), known_split)


def _source(folder: Path, detectors: Detectors) -> _Source:
    """Which product's versions learned from the folder, by its name."""
    name, found = readable(folder.resolve().name), list[tuple[Detector, bundle.Card]]()
    seen: list[str] = []
    for product in detectors.products():
        for version in detectors.versions(product.name):
            if version.kind != "imported":
                continue
            card = bundle.read(detectors.place(version) / "bundle").card
            seen.append(card.data.source)
            if card.data.source == name:
                found.append((version, card))
    if not found:
        have = ", ".join(sorted(set(seen))) or "none"
        raise BlemishError(
            f"--images {folder}: no bundle learned from a folder of the name {name} (there is {have}); give the run of "
            "that folder too, or the folder of a run that is here."
        )
    product_of, card = found[0][0].product, found[0][1]
    tested = [names_tested(detectors.place(version)) for version, _ in found if version.product == product_of]
    sets = [names for names in tested if names]
    return _Source(product_of, card, frozenset(set.intersection(*sets)) if sets else None)


def _rows(samples: Sequence[Sample], source: _Source, store: Store, skipped: list[str]) -> Iterator[Image]:
    """The images' rows, their files in the store; `skipped` gets a sentence for each that cannot be read."""
    for sample in samples:
        try:
            content = sample.path.read_bytes()
            height, width = load_image(sample.path).shape[:2]
            mask = _mask(sample, (height, width), store)
        except (ImageError, OSError) as cause:
            skipped.append(f"{readable(sample.name)}: is left out ({str(cause).removesuffix('.')}).")
            continue
        digest, ending = sha256(content), ending_of(content)
        if not ending:
            skipped.append(f"{readable(sample.name)}: is left out, its format is not known by its first bytes.")
            continue
        store.put(content, digest, ending)
        yield Image(
            sha256=digest,
            product=source.product,
            name=readable(sample.name),
            ending=ending,
            width=width,
            height=height,
            added=now(),
            label=sample.label,
            defect=sample.defect[:100],
            shapes=[],
            mask=mask,
            split=_split(sample, digest, source),
            item=readable(sample.item),
            labelled_by=BY,
        )


def _mask(sample: Sample, size: tuple[int, int], store: Store) -> str:
    """The hash of the mask, as a PNG in the store; "" where there is none. A folder of masks becomes one."""
    if sample.mask is None:
        return ""
    pixels = load_mask(sample.mask, size).astype(np.uint8) * np.uint8(255)
    buffer = io.BytesIO()
    Pixels.fromarray(pixels).save(buffer, "PNG", optimize=True)
    digest = sha256(buffer.getvalue())
    store.put(buffer.getvalue(), digest, ".png")
    return digest


def _split(sample: Sample, digest: str, source: _Source) -> str:
    if source.held_out is not None:
        return "test" if sample.name in source.held_out else "train"
    pooled = source.card.data.pooled
    return sample.split if sample.split and not pooled else split_of(digest, readable(sample.item))


def _write(database: Database, source: _Source, batch: Sequence[Image]) -> int:
    """Adds the rows that are new, in one transaction; returns how many."""
    new = 0
    with database.writing() as session:
        for row in batch:
            known = session.scalar(select(Image).where(Image.product == row.product, Image.sha256 == row.sha256))
            if known is None:
                session.add(row)
                session.flush()
                new += 1
            elif known.label is None:
                new += 1
                _label(session, known, row, source.card)
            elif known.labelled_by == BY and row.split == "train":
                known.split = "train"  # a copy of it was learned from
    return new


def _label(session: Session, known: Image, row: Image, card: bundle.Card) -> None:
    """Gives an image that was inspected before its label."""
    for name in ("label", "defect", "mask", "split", "item", "labelled_by"):
        setattr(known, name, getattr(row, name))
    verdict = session.get(Verdict, known.verdict_id) if known.verdict_id else None
    known.queue = review.rank(known, verdict, card.decision) if verdict else None


def told(say: Callable[[str], None], imported: Imported) -> None:
    """What came of a folder, in words."""
    if imported.new:
        say(f"{imported.new} labelled images of '{imported.product}' imported.")
    if imported.new and not imported.known:
        say(
            f"The bundle of '{imported.product}' came without its run, so it is not known what it learned from: some "
            "of the images that are held out now may flatter it in a comparison; give its run instead."
        )
    for sentence in imported.skipped[:5]:
        say(sentence)
    if len(imported.skipped) > 5:
        say(f"and {len(imported.skipped) - 5} more images are left out.")

"""`blemish serve RUN --images FOLDER`: the labelled images that a bundle learned from and was tested with become
labelled images of its product, so that it can be learned again. They have no verdict. To import twice changes nothing;
an image is known by its name and its content.

What a version learned from is kept as hashes in `detectors/SHA256.learned`, and never held out, whoever labelled it.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image as Pixels
from sqlalchemy import select, update
from sqlalchemy.orm import Session

from blemish.data import layouts
from blemish.images import ImageError, load_image, load_mask
from blemish.inference import bundle
from blemish.reporting.run import names_tested
from blemish.types import BlemishError, Progress, Sample, readable, silent
from blemish.web import review
from blemish.web.database import Database
from blemish.web.dataset import IMPORTED, split_of
from blemish.web.detectors import Detectors
from blemish.web.standing import IMPORT
from blemish.web.store import Store, ending_of, sha256
from blemish.web.tables import Detector, Image, Verdict, now

BATCH = 200  # images in a transaction
BY = IMPORT  # who labelled them


@dataclass(frozen=True)
class Imported:
    """What came of a folder: the product, how many images are new, a sentence for each that could not be read, whether
    it is known which images the versions learned from, and how many are new though their names were known."""

    product: str
    new: int
    skipped: tuple[str, ...] = ()
    known: bool = True
    renewed: int = 0


@dataclass(frozen=True)
class _Source:
    """The versions that learned from a folder, the latest first, and the names that each of them tested ({} where it
    came without its run)."""

    product: str
    versions: tuple[Detector, ...]
    cards: tuple[bundle.Card, ...]
    tested: tuple[frozenset[str], ...]

    @property
    def card(self) -> bundle.Card:
        return self.cards[0]

    def learned(self, sample: Sample, number: int) -> bool | None:
        """Whether the version of that place learned from an image; None where nobody knows."""
        if self.tested[number]:
            return sample.name not in self.tested[number]
        return sample.split == "train" if sample.split and not self.cards[number].data.pooled else None


def bring_images(
    folder: Path, database: Database, store: Store, detectors: Detectors, progress: Progress = silent
) -> Imported:
    """Imports the labelled images of `folder`. An image that is known and labelled stays as it is; other content of a
    known name is another image.

    What the versions' runs were tested with is held out, all others are learned from; without such runs the folder's
    own split counts, and where it has none `split_of`. An image's split stays, but that what any version learned from
    is held out no longer, also where its run came later, or a person labelled the image first. Raises `BlemishError`
    where no bundle names the folder as its data, or it cannot be read.
    """
    source = _source(folder, detectors)
    layout = source.card.data.layout
    dataset = layouts.read(folder, layout if layout in layouts.LAYOUTS else "auto")
    samples = [sample for sample in dataset.samples if sample.label]
    if not samples:
        raise BlemishError(f"{folder}: has no labelled images to import; put them into folders by their labels.")
    skipped: list[str] = []
    digests = _digests(progress(samples, f"reading {folder.name}", len(samples)))
    with database.reading() as session:
        known = select(Image.name, Image.sha256).where(Image.product == source.product, IMPORTED)
        pairs = {(name, digest) for name, digest in session.execute(known)}  # which are not decoded once more
    unknown = [sample for sample in samples if (readable(sample.name), digests.get(sample.name)) not in pairs]
    names, contents = {name for name, _ in pairs}, {None, *(digest for _, digest in pairs)}
    renewed = sum(readable(sample.name) in names and digests.get(sample.name) not in contents for sample in unknown)
    rows = _rows(unknown, source, store, skipped)
    waiting = progress(rows, f"importing {folder.name}", len(unknown)) if unknown else rows
    new, batch = 0, list[Image]()
    for row in waiting:
        batch.append(row)
        if len(batch) >= BATCH:
            new += _write(database, source, batch)
            batch = []
    new += _write(database, source, batch)
    known_split = _remember(samples, digests, source, detectors)
    hold_out_none_of(source.product, database, detectors)
    return Imported(source.product, new, tuple(skipped), known_split, min(renewed, new))


def learned_from(detectors: Detectors, version: Detector) -> frozenset[str] | None:
    """Hashes of the images that a version learned from, where its folder was imported; None where nobody knows."""
    try:
        return frozenset(detectors.folder.learned(version.sha256).read_text(encoding="utf-8").split())
    except OSError:
        return None


def _remember(samples: Sequence[Sample], digests: Mapping[str, str], source: _Source, detectors: Detectors) -> bool:
    """Keeps the hashes of what each version learned from; returns whether that is known of all."""
    known = True
    for number, version in enumerate(source.versions):
        learned = [(sample, source.learned(sample, number)) for sample in samples]
        if any(of is None for _, of in learned):
            known = False
            continue
        if learned_from(detectors, version) is not None:
            continue
        lines = sorted({digests[sample.name] for sample, of in learned if of and sample.name in digests})
        file = detectors.folder.learned(version.sha256)
        partial = file.with_suffix(".partial")
        partial.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
        partial.replace(file)
    return known


def _digests(samples: Iterable[Sample]) -> dict[str, str]:
    """The hash of each image that can be read."""
    found = {}
    for sample in samples:
        with suppress(OSError):
            found[sample.name] = sha256(sample.path.read_bytes())
    return found


def hold_out_none_of(product: str, database: Database, detectors: Detectors) -> None:
    """No image that a version is known to have learned from stays held out, whoever labelled it."""
    learned = sorted(frozenset[str]().union(*(learned_from(detectors, v) or () for v in detectors.versions(product))))
    for start in range(0, len(learned), BATCH):
        some = Image.sha256.in_(learned[start : start + BATCH])
        chosen = update(Image).where(Image.product == product, Image.split != "train", some).values(split="train")
        with database.writing() as session:
            session.execute(chosen)


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
    product_of = found[0][0].product
    own = [(version, card) for version, card in found if version.product == product_of]
    tested = [frozenset(names_tested(detectors.place(version))) for version, _ in own]
    return _Source(product_of, tuple(v for v, _ in own), tuple(card for _, card in own), tuple(tested))


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
    learned = {source.learned(sample, number) for number in range(len(source.versions))}
    if learned == {None}:
        return split_of(digest, readable(sample.item))
    return "train" if True in learned else "test"


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
    for name in ("label", "defect", "mask", "item", "labelled_by"):
        setattr(known, name, getattr(row, name))
    known.split = known.split or row.split  # it may have been labelled once, and that undone
    verdict = session.get(Verdict, known.verdict_id) if known.verdict_id else None
    known.queue = review.rank(known, verdict, card.decision) if verdict else None


def told(say: Callable[[str], None], imported: Imported) -> None:
    """What came of a folder, in words."""
    if imported.new:
        say(f"{imported.new} labelled images of '{imported.product}' imported.")
    if imported.renewed:
        say(
            f"{imported.renewed} of them have the names of images that were imported before, and other content: both "
            "are kept; where they only replace them, begin with a new --data folder."
        )
    if imported.new and not imported.known:
        say(
            f"The bundle of '{imported.product}' came without its run, so it is not known what it learned from: some "
            "of the images that are held out now may flatter it in a comparison; give its run instead."
        )
    for sentence in imported.skipped[:5]:
        say(sentence)
    if len(imported.skipped) > 5:
        say(f"and {len(imported.skipped) - 5} more images are left out.")

"""The demo's page: `index.html` beside the runs, with images of its own; it needs no network.

It reads only what `blemish train` wrote, so that it shows nothing that the run did not measure.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from PIL import Image

from blemish import reporting
from blemish.data import layouts
from blemish.demo.line import PRODUCTS
from blemish.files import write_text
from blemish.images import load_image, load_mask
from blemish.inference import bundle
from blemish.inference.overlay import colours
from blemish.listing import natural
from blemish.reporting.figures import FILTERS, MAIN, SHORT, Figure
from blemish.reporting.thumbnails import outline
from blemish.types import BlemishError, Progress, Sample, silent

IMAGES = "page"  # the folder beside index.html that holds the page's images
SIDE = 384  # longest side of a thumbnail: sharp at the 190 to 380 pixels at which the page shows it

# The outcomes of a verdict and their labels, in the order of the gallery.
OUTCOMES = {"missed": "missed", "false-alarm": "false alarm", "found": "found", "passed": "good"}

HOW = {
    "attention": "an autoencoder",
    "hybrid": "the hybrid",
}  # what a detector is called beside the same product's other runs


@dataclass(frozen=True)
class Shot:
    """One test image as the page shows it. Addresses are relative to `index.html` and quoted."""

    key: str  # its anchor
    name: str
    outcome: str  # a key of OUTCOMES
    defect: str
    score: float
    p_value: float
    probability: float | None  # of a classifier
    boxes: int
    at: float  # position of its score on the product's axis, 0..100
    size: tuple[int, int]  # width, height of the thumbnails, so that the layout is stable while they load
    image: str
    heat: str | None  # the overlay; None where none was drawn
    outline: str | None  # None where there is no mask
    full: str  # the original
    full_heat: str | None
    reconstruction: str | None = None  # by an autoencoder: how it would look if it were good
    full_reconstruction: str | None = None

    @property
    def label(self) -> str:
        return OUTCOMES[self.outcome]

    @property
    def title(self) -> str:
        return self.defect.replace("_", " ") or "good part"


@dataclass(frozen=True)
class Row:
    """One row of the plot of scores, such as a defect type, and the images in it."""

    title: str
    note: str
    kind: str  # held-out, good, defective
    shots: tuple[Shot, ...] = ()
    marks: tuple[float, ...] = ()  # positions of scores whose images the page does not show


@dataclass(frozen=True)
class Exhibit:
    """All that the page shows of one run."""

    name: str
    title: str
    card: bundle.Card
    metrics: Mapping[str, Any]
    threshold: float  # position of the threshold on the axis, 0..100
    shots: tuple[Shot, ...]
    strip: tuple[Shot, ...]
    rows: tuple[Row, ...]
    errors: tuple[str, ...]
    reconstructs: bool  # an autoencoder reconstructed every image

    @property
    def saw_defects(self) -> bool:
        """Whether it learned from defective parts too."""
        return bool(self.metrics["counts"]["train_anomaly"]) and self.metrics.get("defects", {}).get("used", True)

    @property
    def sentence(self) -> str:
        """What the defects brought to a detector that asks."""
        return str(self.metrics.get("defects", {}).get("sentence", ""))

    def count(self, outcome: str) -> int:
        return sum(shot.outcome == outcome for shot in self.shots)

    @property
    def star(self) -> Shot | None:
        """The image at the top of the page: the defective one with the highest score."""
        return max((s for s in self.shots if s.outcome == "found" and s.heat), key=lambda s: s.score, default=None)

    @property
    def training_samples(self) -> str:
        """How many parts the detector was trained on."""
        defective = self.metrics["counts"]["train_anomaly"]
        good = self.metrics["counts"]["train"] - defective
        return f"{good} good" + (f" and {defective} defective" if self.saw_defects else "")

    @property
    def defects(self) -> list[str]:
        return sorted({shot.defect for shot in self.shots if shot.defect})

    def measured(self, figure: Figure) -> Mapping[str, Any] | None:
        """What `metrics.json` has of it."""
        measured: Mapping[str, Any] | None = self.metrics.get(figure.group, {}).get(figure.name)
        return measured


def write_page(out: Path, products: Sequence[str], progress: Progress = silent) -> Path:
    """Writes `out/index.html` and its images in `out/page/`, and returns the former.

    For each of `products`, `out/<name>` is the run that `blemish train` wrote; its images are in `out/data/<folder>`,
    whose name is in the run's card. Raises `BlemishError` where one of them, or jinja2, is missing.
    """
    try:
        import jinja2
    except ImportError:
        raise BlemishError("The page needs jinja2, which is not installed; run: pip install 'blemish[learn]'") from None
    out = Path(out)
    exhibits = [_exhibit(out, name, progress) for name in products]
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader([Path(__file__).parent, Path(reporting.__file__).parent]),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(FILTERS)
    text = environment.get_template("page.html").render(
        exhibits=exhibits,
        figures=MAIN,
        short=SHORT,
        outcomes=OUTCOMES,
        scale=", ".join("rgb({}, {}, {})".format(*colours()[i]) for i in range(0, 256, 51)),
    )
    page = out / "index.html"
    write_text(page, text)
    return page


def _exhibit(out: Path, name: str, progress: Progress) -> Exhibit:
    run = out / name
    card = bundle.read(run / "bundle").card
    metrics = json.loads(_text(run / "metrics.json"))
    verdicts = [json.loads(line) for line in _text(run / "verdicts.jsonl").splitlines()]
    data = out / "data" / card.data.source
    samples = {sample.name: sample for sample in layouts.read(data, card.data.layout).samples}
    labelled = [verdict for verdict in verdicts if verdict["score"] is not None and verdict["label"]]
    for verdict in labelled:
        if verdict["path"] not in samples:
            raise BlemishError(f"{run}: inspected {verdict['path']}, which is not in {data}; draw and train again.")
    scores: list[float] = [*card.decision.scores, *(verdict["score"] for verdict in labelled), card.decision.threshold]
    low, high = min(scores), max(scores)

    def position(score: float) -> float:
        """2..98, so that the outermost marks are visible as a whole."""
        return round(2 + 96 * (score - low) / ((high - low) or 1.0), 2)

    reconstructs = (run / "reconstruction").is_dir()  # inpainted images of other detectors are in the report
    shutil.rmtree(out / IMAGES / name, ignore_errors=True)  # an earlier run may have had other images
    shots = [
        _shot(out, data, run, reconstructs, samples[verdict["path"]], verdict, position(verdict["score"]))
        for verdict in progress(labelled, "page", len(labelled))
    ]
    shots.sort(key=lambda s: (list(OUTCOMES).index(s.outcome), s.defect, natural(s.name)))
    title = PRODUCTS[card.data.source].title if card.data.source in PRODUCTS else name
    by = "a classifier" if card.classes else HOW.get(card.detector)
    return Exhibit(
        name=name,
        title=f"{title}, by {by}" if by else title,
        card=card,
        metrics=metrics,
        threshold=position(card.decision.threshold),
        shots=tuple(shots),
        strip=tuple(_strip(shots)),
        rows=tuple(_rows(shots, [position(score) for score in card.decision.scores])),
        errors=tuple(verdict["error"] for verdict in verdicts if verdict["error"]),
        reconstructs=reconstructs,
    )


def _shot(
    out: Path, data: Path, run: Path, reconstructs: bool, sample: Sample, verdict: Mapping[str, Any], at: float
) -> Shot:
    """One test image; writes its thumbnails."""
    folder = out / IMAGES / run.name
    stem = sample.name.replace("/", "-")
    pixels = load_image(sample.path)
    image = _thumbnail(Image.fromarray(pixels))
    _save(image, folder / f"{stem}.jpg")
    kinds = {"heat": "overlays"} | ({"reconstruction": "reconstruction"} if reconstructs else {})
    full, small = {}, {}
    for kind, source in kinds.items():
        file = run / source / f"{sample.name}.jpg"
        if file.exists():
            full[kind], small[kind] = file, folder / f"{stem}-{kind}.jpg"
            with Image.open(file) as image:
                _save(_thumbnail(image.convert("RGB")), small[kind])
    if sample.mask:
        mask = load_mask(sample.mask, pixels.shape[:2])
        outline(mask, image.size).save(folder / f"{stem}-outline.png", optimize=True)

    def address(path: Path) -> str:
        return quote(path.relative_to(out).as_posix())

    def optional(path: Path | None) -> str | None:
        return address(path) if path else None

    defective, flagged = sample.label == "anomaly", verdict["decision"] == "anomaly"
    return Shot(
        key=quote(f"{run.name}-{stem}"),
        name=sample.name,
        outcome=("found" if flagged else "missed") if defective else ("false-alarm" if flagged else "passed"),
        defect=sample.defect or ("defective" if defective else ""),
        score=verdict["score"],
        p_value=verdict["p_value"],
        probability=verdict["probability"],
        boxes=len(verdict["regions"]),
        at=at,
        size=image.size,
        image=address(folder / f"{stem}.jpg"),
        heat=optional(small.get("heat")),
        outline=optional(folder / f"{stem}-outline.png" if sample.mask else None),
        full=address(data / sample.name),
        full_heat=optional(full.get("heat")),
        reconstruction=optional(small.get("reconstruction")),
        full_reconstruction=optional(full.get("reconstruction")),
    )


def _strip(shots: Sequence[Shot]) -> list[Shot]:
    """Two good parts, then the first of each defect type."""
    good = sorted((s for s in shots if not s.defect), key=lambda s: natural(s.name))[:2]
    first = {shot.defect: shot for shot in sorted(shots, key=lambda s: natural(s.name), reverse=True)}
    return [*good, *(first[defect] for defect in sorted(filter(None, first)))]


def _rows(shots: Sequence[Shot], held_out: Sequence[float]) -> list[Row]:
    good = tuple(shot for shot in shots if not shot.defect)
    passed = sum(shot.outcome == "passed" for shot in good)
    rows = [
        Row("good, held out", f"{len(held_out)} set the threshold", "held-out", marks=tuple(held_out)),
        Row("good, tested", f"{passed} of {len(good)} passed", "good", good),
    ]
    for defect in sorted({shot.defect for shot in shots if shot.defect}):
        of_type = tuple(shot for shot in shots if shot.defect == defect)
        detected = sum(shot.outcome == "found" for shot in of_type)
        rows.append(Row(of_type[0].title, f"{detected} of {len(of_type)} found", "defective", of_type))
    return rows


def _thumbnail(image: Image.Image) -> Image.Image:
    small = image.copy()
    small.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS, reducing_gap=None)
    return small


def _save(image: Image.Image, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, "JPEG", quality=82, optimize=True, progressive=True)


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as cause:
        raise BlemishError(f"{path} cannot be read ({cause.strerror}); run blemish demo again.") from None

"""Ranking, validation, and a whole sweep from the images to the tested detector."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Self, TypeVar

import numpy as np
import pytest

from blemish.detectors import registry
from blemish.detectors.interface import Traits
from blemish.detectors.patchcore.config import PatchCoreConfig
from blemish.detectors.patchcore.detector import PatchCore
from blemish.images import load_image, load_mask
from blemish.inference import bundle
from blemish.training.cell import Cell, Row
from blemish.training.sweep import Sweep, SweepConfig, rank, sweep
from blemish.training.validation import FIGURES, hold_out, measure, read_validation
from blemish.types import BlemishError, Prediction, Progress, Sample, silent
from tests.support import blemish, write_image

T = TypeVar("T")
GRID = "coreset=0.02,0.2;seed=0,1"


def config_for(product: Path, out: Path, grid: str = GRID, **changes: Any) -> SweepConfig:
    return replace(SweepConfig(product, out, grid, "patchcore", image_size=(64, 96)), **changes)


def read_table(out: Path) -> list[dict[str, str]]:
    """The CSV without its seconds."""
    with (out / "sweep.csv").open(encoding="utf-8-sig", newline="") as lines:
        return [{name: text for name, text in row.items() if name != "seconds"} for row in csv.DictReader(lines)]


@pytest.fixture(scope="module")
def swept(product: Path, tmp_path_factory: pytest.TempPathFactory) -> Sweep:
    return sweep(config_for(product, tmp_path_factory.mktemp("sweeps") / "tiles"))


def row(options: str, choice: float, seconds: float = 1.0, error: str = "") -> Row:
    pairs = dict(pair.split("=") for pair in options.split(";"))
    figures = {} if error else dict.fromkeys(FIGURES, 0.5) | {"choice": choice}
    return Row(pairs, figures, seconds, error)


def test_candidates_are_ranked_by_the_mean_over_seeds() -> None:
    rows = [
        row("model=a;seed=0", 0.95, 2),
        row("model=b;seed=0", 0.80),
        row("model=a;seed=1", 0.65, 4),
        row("model=b;seed=1", 0.84),
    ]
    best, second = rank(rows)  # a has the best single cell
    assert (best.options, best.seeds) == ({"model": "b"}, ("0", "1"))
    assert best.figures["choice"] == pytest.approx(0.82)
    assert best.std == pytest.approx(0.02 * 2**0.5)
    assert second.figures["choice"] == pytest.approx(0.80)
    assert second.seconds == 3


def test_among_equals_the_faster_is_chosen_and_failed_candidates_come_last() -> None:
    rows = [
        row("model=a;seed=0", 0, error="no"),
        row("model=a;seed=1", 0.99),
        row("model=slow;seed=0", 0.90001, 9),
        row("model=quick;seed=0", 0.90000, 3),
        row("model=worse;seed=0", 0.8998, 1),
    ]
    assert [c.options["model"] for c in rank(rows)] == ["quick", "slow", "worse", "a"]
    assert rank(rows)[0].std is None
    assert (rank(rows)[-1].figures, rank(rows)[-1].error) == ({}, "no")


def test_held_out_images_of_one_item_stay_together() -> None:
    samples = [Sample(Path(f"{i}.png"), f"{i:02}.png", "good", split="train", group=f"{i // 3}") for i in range(30)]
    learning, held_out = hold_out(samples, 0.3, 0, groups=[["00.png", "29.png", "tested.png"]])
    assert {s.name for s in learning} | {s.name for s in held_out} == {s.name for s in samples}
    assert not {s.group for s in learning} & {s.group for s in held_out}
    assert len({s.name for s in held_out} & {"00.png", "29.png"}) in (0, 2)
    assert len(held_out) == 9
    assert len(hold_out(samples[:12], 0.1, 0)[1]) == 6  # 8 are wanted, but at most half are held out
    for share in (0.0, 1.0):
        with pytest.raises(BlemishError, match="must be above 0 and below 1"):
            hold_out(samples, share, 0)
    with pytest.raises(BlemishError, match="at least 2 held-out"):
        hold_out([replace(s, group="") for s in samples[:3]], 0.3, 0)


def test_validation_figures_by_hand(tmp_path: Path) -> None:
    """2 x 2 images: one anomaly scores above both good images, one between them; the defect is the left
    column."""
    mask = write_image(tmp_path / "mask.png", [[255, 0], [255, 0]])
    samples = []
    for number, good in enumerate((True, True, False, False)):
        file = write_image(tmp_path / f"{number}.png", np.zeros((2, 2)))
        samples.append(Sample(file, file.name, "good" if good else "anomaly", mask=None if good else mask))
    maps = np.zeros((4, 2, 2), np.float32)
    maps[2, :, 0] = 2
    maps[3, :, 1] = 1  # in the wrong place
    prediction = Prediction(np.array([0, 2, 3, 1], np.float32), maps)
    figures = measure(samples, prediction)
    assert figures["image_auroc"] == 0.75
    assert figures["average_precision"] == pytest.approx((1 + 2 / 3) / 2)
    # 4 defective pixels: two above all 12 good ones, two tied with 10 of them and below the other 2.
    assert figures["pixel_auroc"] == pytest.approx((2 * 12 + 2 * 5) / (4 * 12))
    assert figures["best_iou"] == pytest.approx(0.5)
    assert figures["choice"] == pytest.approx((0.75 + 34 / 48) / 2)
    with pytest.raises(BlemishError, match="not finite"):
        measure(samples, Prediction(np.full(4, np.nan, np.float32), maps))


def test_a_sweep_measures_every_cell_and_tests_the_chosen_settings(swept: Sweep, run: Path) -> None:
    rows = read_table(swept.folder)
    assert list(rows[0]) == ["coreset", "seed", *FIGURES, "error"]
    assert [(r["coreset"], r["seed"]) for r in rows] == [("0.02", "0"), ("0.02", "1"), ("0.2", "0"), ("0.2", "1")]
    for r in rows:
        assert float(r["choice"]) == (float(r["image_auroc"]) + float(r["pixel_auroc"])) / 2
    means = {c: np.mean([float(r["choice"]) for r in rows if r["coreset"] == c]) for c in ("0.02", "0.2")}
    assert swept.chosen.options["coreset"] == max(means, key=lambda c: means[c])
    assert swept.chosen.seeds == ("0", "1")
    card = bundle.read(swept.folder / "chosen").card
    assert card.settings["coreset"] == float(swept.chosen.options["coreset"])
    assert (card.settings["seed"], card.image_size) == (0, (64, 96))
    written = [".blemish", "chosen", "sweep.csv", "sweep.json", "validation"]
    assert sorted(p.name for p in swept.folder.iterdir()) == written
    # The final training also learns from the validation images, and the test split is that of `blemish train`.
    assert card.data == bundle.read(run).card.data
    assert swept.metrics is not None
    assert swept.metrics == json.loads((swept.folder / "chosen/metrics.json").read_text(encoding="utf-8"))
    assert verdict_paths(swept.folder / "chosen") == verdict_paths(run)


def verdict_paths(run: Path) -> list[str]:
    lines = (run / "verdicts.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line)["path"] for line in lines]


def test_the_validation_split_is_held_out_and_corrupted_inside_its_masks(swept: Sweep, product: Path) -> None:
    samples = read_validation(swept.folder / "validation")
    good = [s for s in samples if s.label == "good"]
    assert len(good) == 4  # 8 are held out, and half of them stay good
    assert len(samples) == 4 + 4 * 3
    originals = {load_image(f).tobytes(): f.name for f in sorted((product / "train/good").iterdir())}
    tested = {load_image(f).tobytes() for f in (product / "test/good").iterdir()}
    assert {originals[load_image(s.path).tobytes()] for s in good} == {s.path.name.partition("-")[2] for s in good}
    for sample in samples:
        if sample.label == "anomaly":
            assert sample.mask
            image, before = load_image(sample.path), product / "train/good" / f"{sample.path.name.split('-')[1]}.png"
            mask = load_mask(sample.mask, (60, 80))
            changed = (image != load_image(before)).any(2)
            assert changed.any()
            assert not (changed & ~mask).any()
        assert load_image(sample.path).tobytes() not in tested


def test_cells_do_not_learn_from_the_validation_split(
    product: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    learned: list[set[str]] = []
    fit = PatchCore.fit

    def spied(self: PatchCore, samples: Any, *args: Any) -> PatchCore:
        learned.append({sample.path.stem for sample in samples})
        return fit(self, samples, *args)

    monkeypatch.setattr(PatchCore, "fit", spied)
    done = sweep(config_for(product, tmp_path / "out", "coreset=0.02", test=False))
    (cell,) = learned
    held_out = {f.stem.split("-")[1] for f in (done.folder / "validation/test").rglob("*.png")}
    assert (len(cell), len(held_out)) == (13, 8)  # of 21, of which a fifth would be fewer than FEWEST
    assert not cell & held_out
    assert read_table(done.folder)[0]["seed"] == "0"


def test_a_killed_sweep_is_resumed(
    swept: Sweep, product: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, fit, done = tmp_path / "out", PatchCore.fit, list[PatchCoreConfig]()

    def killed(self: PatchCore, *args: Any) -> PatchCore:
        if len(done) == 1:
            raise KeyboardInterrupt
        done.append(self.config)
        return fit(self, *args)

    monkeypatch.setattr(PatchCore, "fit", killed)
    with pytest.raises(KeyboardInterrupt):
        sweep(config_for(product, out))
    assert read_table(out) == read_table(swept.folder)[:1]

    def counted(self: PatchCore, *args: Any) -> PatchCore:
        done.append(self.config)
        return fit(self, *args)

    monkeypatch.setattr(PatchCore, "fit", counted)
    again = sweep(config_for(product, out, test=False))
    assert [(c.coreset, c.seed) for c in done] == [(0.02, 0), (0.02, 1), (0.2, 0), (0.2, 1)]
    assert read_table(out) == read_table(swept.folder)
    assert again.chosen.figures == swept.chosen.figures

    # Nothing is left to do: the chosen run is reused too.
    shutil.copytree(swept.folder / "chosen", out / "chosen")
    assert sweep(config_for(product, out)).metrics == swept.metrics
    assert len(done) == 4
    # A larger grid adds only its new cells; the same settings written differently are not new.
    sweep(config_for(product, out, "coreset=0.20,0.3;place=auto", test=False))
    assert [c.coreset for c in done[4:]] == [0.3]
    assert [(r["coreset"], r["place"]) for r in read_table(out)[3:]] == [("0.2", ""), ("0.3", "auto")]


def test_a_failed_cell_is_a_row_and_is_tried_again(
    product: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fit = PatchCore.fit

    def failing(self: PatchCore, *args: Any) -> PatchCore:
        if self.config.coreset == 0.05:
            raise BlemishError('Text with commas, and "quotes", too.')
        if self.config.coreset == 0.06:
            raise RuntimeError("out of memory\nwith a long story")
        return fit(self, *args)

    monkeypatch.setattr(PatchCore, "fit", failing)
    out = tmp_path / "out"
    done = sweep(config_for(product, out, "coreset=0.05,0.06,0.02", test=False))
    errors = ['Text with commas, and "quotes", too.', "RuntimeError: out of memory", ""]
    assert [r["error"] for r in read_table(out)] == errors
    assert read_table(out)[0]["choice"] == ""
    assert done.chosen.options == {"coreset": "0.02"}
    assert done.metrics is None
    assert not (out / "chosen").exists()
    monkeypatch.setattr(PatchCore, "fit", fit)
    before = read_table(out)
    sweep(config_for(product, out, "coreset=0.05,0.06,0.02", test=False))
    after = read_table(out)
    assert [r["error"] for r in after] == ["", "", ""]
    assert after[2] == before[2]
    monkeypatch.setattr(PatchCore, "fit", failing)
    with pytest.raises(BlemishError, match="Every cell of the grid failed; the first error: Text with commas"):
        sweep(config_for(product, tmp_path / "other", "coreset=0.05", test=False))


@dataclass(frozen=True)
class TrainedConfig(PatchCoreConfig):
    """PatchCore with the traits of a detector that is trained by gradient."""

    traits: ClassVar[Traits] = replace(PatchCoreConfig.traits, name="trained", trained_by_gradient=True)

    checkpoint: Path | None = None
    resume: bool = False

    def build(self) -> PatchCore:
        return Trained(self)


CHECKPOINT_EXISTED = list[bool]()  # at each fit


class Trained(PatchCore):
    def fit(self, samples: Sequence[Sample], progress: Progress = silent, *, held_out: Sequence[Sample] = ()) -> Self:
        assert isinstance(self.config, TrainedConfig)
        assert self.config.checkpoint
        assert self.config.resume
        file = self.config.checkpoint / "epoch.txt"
        CHECKPOINT_EXISTED.append(file.exists())
        file.write_text("1", encoding="utf-8")
        if len(CHECKPOINT_EXISTED) == 2:
            raise KeyboardInterrupt
        return super().fit(samples, progress)


def test_a_killed_cell_is_resumed_from_its_checkpoint(
    product: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(registry.OURS, "trained", f"{__name__}:TrainedConfig")
    registry.config_of.cache_clear()
    CHECKPOINT_EXISTED.clear()
    config = config_for(product, tmp_path / "out", "coreset=0.02;seed=0,1", detector="trained", test=False)
    with pytest.raises(KeyboardInterrupt):
        sweep(config)
    sweep(config)
    assert CHECKPOINT_EXISTED == [False, False, True]  # the second cell finds its own file, not that of the first
    assert [r["error"] for r in read_table(config.out)] == ["", ""]
    assert sorted(p.name for p in config.out.iterdir()) == [".blemish", "sweep.csv", "sweep.json", "validation"]


def test_cells_may_be_measured_elsewhere_and_in_any_order(product: Path, tmp_path: Path) -> None:
    out, ended = tmp_path / "out", list[str]()

    def backwards(
        cells: Sequence[Cell], learning: Sequence[Sample], validation: Sequence[Sample], progress: Progress
    ) -> Generator[tuple[Cell, Row], None, None]:
        try:
            for cell in reversed(cells):
                yield cell, Row(cell.options, dict.fromkeys(FIGURES, 0.5), 1.0)
                if cell.options["seed"] == "1":
                    raise KeyboardInterrupt
        finally:
            ended.append(f"{len(cells)} cells, {len(learning)} and {len(validation)} images")

    def seeds() -> list[str]:
        return [row["seed"] for row in read_table(out)]

    def run(grid: str) -> Sweep:
        return sweep(config_for(product, out, grid, test=False), measure=backwards)

    with pytest.raises(KeyboardInterrupt):
        run("seed=2,1,0,3")
    assert seeds() == ["1", "0", "3"]
    # In the end the table is in the grid's order, after the rows of other grids; the same settings are one cell.
    assert run("coreset=0.1,0.10;seed=2,1,0").chosen.seeds == ("3", "2", "1", "0")
    assert seeds() == ["3", "2", "1", "0"]
    assert ended == ["4 cells, 13 and 16 images", "1 cells, 13 and 16 images"]


def test_a_measure_is_closed_where_the_table_cannot_be_written(
    product: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended = list[bool]()

    def measured(cells: Sequence[Cell], *args: Any) -> Generator[tuple[Cell, Row], None, None]:
        try:
            for cell in cells:
                yield cell, Row(cell.options, dict.fromkeys(FIGURES, 0.5), 1.0)
        finally:
            ended.append(True)

    def full(*args: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("blemish.training.sweep._write", full)
    with pytest.raises(OSError, match="No space left") as caught:
        sweep(config_for(product, tmp_path / "out", "seed=0,1", test=False), measure=measured)
    assert ended == [True]  # at once, not when the exception is forgotten
    assert caught


def test_progress_names_the_cell(product: Path, tmp_path: Path) -> None:
    stages = list[str]()

    def progress(items: Iterable[T], what: str, total: int) -> Iterator[T]:
        stages.append(what)
        return iter(items)

    sweep(config_for(product, tmp_path / "out", "coreset=0.02;seed=3,4", test=False), progress)
    assert [what for what in stages if "cell" not in what] == ["images", "corrupting"]
    assert stages[-1] == "cell 2/2, validation"


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"seed": 1}, "is a sweep with other seed; choose another folder with -o, or start again with --overwrite"),
        ({"validation": 0.3}, "other validation"),
        ({"image_size": (96, 96)}, "other image size"),
        ({"false_alarms": 0.2}, "other false alarms"),
    ],
)
def test_another_sweep_is_not_resumed(swept: Sweep, product: Path, changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(BlemishError, match=sentence):
        sweep(config_for(product, swept.folder, **changes))


def test_other_images_are_refused_and_overwriting_starts_again(swept: Sweep, product: Path, tmp_path: Path) -> None:
    out, data = tmp_path / "out", tmp_path / "tiles"
    shutil.copytree(product, data)
    shutil.copytree(swept.folder, out)
    sweep(config_for(data, out, test=False))  # the same images in another place
    shutil.copy(data / "train/good/000.png", data / "test/good/copy.png")
    with pytest.raises(BlemishError, match="is a sweep with other images"):
        sweep(config_for(data, out))
    sweep(config_for(data, out, "coreset=0.02", test=False, overwrite=True))
    assert len(read_table(out)) == 1
    next((out / "validation/test/good").iterdir()).unlink()
    with pytest.raises(BlemishError, match="were changed since the sweep started"):
        sweep(config_for(data, out, "coreset=0.02"))
    (out / "sweep.json").write_text("[]", encoding="utf-8")
    with pytest.raises(BlemishError, match="are damaged"):
        sweep(config_for(data, out, "coreset=0.02"))


def test_refusals(product: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").touch()
    for overwrite in (False, True):
        with pytest.raises(BlemishError, match="was not written by this version"):
            sweep(config_for(product, tmp_path, overwrite=overwrite))
    for grid, sentence in (
        ("cores=1", "--cores is not an option of --detector patchcore"),
        ("max_bank=1,many", "--max-bank takes a whole number, not 'many'"),
    ):
        with pytest.raises(BlemishError, match=sentence):
            sweep(config_for(product, tmp_path / "out", grid))
    with pytest.raises(BlemishError, match="learns from defective images too"):
        sweep(config_for(product, tmp_path / "out", "epochs=1", detector="cam"))
    assert not (tmp_path / "out").exists()


def test_the_command(swept: Sweep, product: Path, tmp_path: Path) -> None:
    shutil.copytree(swept.folder, tmp_path / "out")
    words = ("sweep", product, "-o", tmp_path / "out", "--detector", "patchcore", "--grid", GRID)
    printed = blemish(*words, "--image-size", "64x96").stdout
    chosen = swept.chosen.options["coreset"]
    assert f"Chosen: coreset={chosen} (highest mean of image AUROC and pixel AUROC" in printed
    assert "tested on 6 good and 6 defective" in " ".join(printed.split())
    result = json.loads(blemish(*words, "--image-size", "64x96", "--json", "--no-test").stdout)
    assert result["chosen"]["options"] == {"coreset": chosen}
    assert result["metrics"] is None
    assert "test" not in result["rule"]

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from blemish.data.corrupt import corrupt
from blemish.detectors.patchcore.config import PatchCoreConfig
from blemish.images import decode
from blemish.training import image_size
from blemish.training.config import TrainConfig
from blemish.training.image_size import Candidate, _chosen, choose_size, parted, separation
from blemish.training.pipeline import train
from blemish.types import BlemishError, Prediction, Runner, Sample
from tests.support import grey, refused

SETTINGS = PatchCoreConfig(max_bank=200, place="no")
SMALL, LARGE = (64, 64), (256, 256)
PLENTY = 60_000.0  # ms


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_size, "AREAS", (SMALL[0] * SMALL[1], LARGE[0] * LARGE[1]))
    monkeypatch.setattr(image_size, "TIMED", 1)


def images(count: int = 12) -> list[Sample]:
    """Grey images (256, 256) with noise that hides small defects when they are shrunk."""
    random = np.random.default_rng(0)
    values = [np.clip(random.normal(110, 4, (256, 256)), 0, 255) for _ in range(count)]
    return [Sample(Path(f"{i}.png"), f"{i}.png", "good", pixels=grey(value)) for i, value in enumerate(values)]


def own_items(samples: Sequence[Sample]) -> dict[str, str]:
    return {sample.name: sample.name for sample in samples}


@pytest.fixture(scope="module")
def fitted() -> dict[tuple[int, int], Runner]:
    """Fitting and exporting take seconds, and the detectors of several tests are the same."""
    return {}


@pytest.fixture
def no_files(monkeypatch: pytest.MonkeyPatch, fitted: dict[tuple[int, int], Runner]) -> None:
    """The samples have pixels and no files, and each size is fitted once."""
    fit = image_size._runner

    def fit_once(settings: PatchCoreConfig, samples: Sequence[Sample]) -> Runner:
        if settings.image_size not in fitted:
            fitted[settings.image_size] = fit(settings, samples)
        return fitted[settings.image_size]

    monkeypatch.setattr(image_size, "_runner", fit_once)
    monkeypatch.setattr("blemish.training.splits.read_size", lambda _: (256, 256))


@pytest.mark.usefixtures("no_files")
@pytest.mark.parametrize(
    ("defects", "expected"), [((0.0001, 0.0002), LARGE), ((0.04, 0.06), SMALL)], ids=["small", "large"]
)
def test_the_size_follows_the_defects_that_it_must_show(
    defects: tuple[float, float], expected: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(image_size, "DEFECTS", (defects, defects))
    choice = choose_size(images(), own_items(images()), SETTINGS, PLENTY)
    assert choice.image_size == expected, choice
    assert [tried.image_size for tried in choice.candidates] == [SMALL, LARGE]
    assert (choice.fitted, choice.scored) == (8, 4)


def test_the_smallest_size_within_a_hundredth_of_the_best_is_chosen() -> None:
    tried = [Candidate((32, 32), 1, 0.90), Candidate((64, 64), 2, 0.95), Candidate((96, 96), 3, 0.955)]
    assert _chosen(tried, 10) == (64, 64)
    assert _chosen([*tried[:1], Candidate((64, 64), 11, None)], 10) == (32, 32)
    with pytest.raises(BlemishError, match=r"^--budget 10 ms is not enough: one image of 64x96 takes 11\.0 ms here; "):
        _chosen([Candidate((64, 96), 11, None)], 10)


@pytest.mark.usefixtures("no_files")
def test_a_size_over_the_budget_ends_the_search(monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter([5.0, 15.0])
    monkeypatch.setattr(image_size, "milliseconds", lambda *_: next(times))
    monkeypatch.setattr(image_size, "DEFECTS", ((0.04, 0.06),))
    choice = choose_size(images(), own_items(images()), SETTINGS, 10)
    assert choice.image_size == SMALL
    assert choice.candidates[1] == Candidate(LARGE, 15.0, None)
    assert choice.sentence.endswith("256x256: 15 ms, over the budget).")


def test_images_of_one_item_are_on_one_side() -> None:
    samples = [Sample(Path(f"{i}"), f"{i}", "good") for i in range(90)]
    items = {sample.name: f"item {i // 3}" for i, sample in enumerate(samples)}
    learned, scored = parted(samples, items)
    assert (len(learned), len(scored)) == (40, 20)
    assert not {items[s.name] for s in learned} & {items[s.name] for s in scored}
    with pytest.raises(BlemishError, match=r"^3 good parts to learn from are too few to choose an image size"):
        parted(samples[:9], items)


def test_the_figure_is_the_auroc_of_images_against_their_copies() -> None:
    samples = images(2)
    seen: list[bytes] = []

    def run(pixels: np.ndarray) -> Prediction:
        seen.append(pixels.tobytes())
        order = len(seen) - 1  # good, then three copies; twice
        score = [2, 3, 1, 4, 0, 5, 6, 7][order]
        return Prediction(np.array([score], np.float32), np.zeros((1, 1, 1), np.float32))

    # Of 2 x 6 pairs only the good image of score 2 and the copy of score 1 are in the wrong order.
    assert separation(run, samples, 3) == pytest.approx(11 / 12)
    assert seen[0] == decode(samples[0]).tobytes()
    copy = corrupt(decode(samples[0]), np.random.default_rng([3, 0]), area=image_size.DEFECTS[0])
    assert seen[1] == copy.image.tobytes()


def test_a_run_says_which_size_was_chosen(product: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_size, "AREAS", (64 * 64,))
    settings = replace(SETTINGS, random_weights=True)
    config = TrainConfig(product, tmp_path / "run", settings=settings, budget=PLENTY, overlays=0, evidence=False)
    metrics = train(config).metrics
    entry = json.loads((tmp_path / "run/metrics.json").read_text("utf-8"))["image_size"]
    assert entry == json.loads(json.dumps(metrics["image_size"]))
    assert entry["sentence"].startswith("Image size 64x64, chosen within 60000 ms by synthetic defects in ")
    assert entry["chosen"] == entry["candidates"][0]["image_size"] == [64, 64]
    assert "choose the image size" in metrics["seconds"]
    assert entry["sentence"] in (tmp_path / "run/report.html").read_text("utf-8")


def test_what_a_budget_cannot_choose_is_refused(product: Path, tmp_path: Path) -> None:
    def sentence(*options: object) -> str:
        return refused("train", product, "-o", tmp_path / "run", "--budget", *options)

    assert "--image-size gives it; omit one" in sentence(50, "--image-size", 64)
    assert "omit it with --tile, --roi or --align" in sentence(50, "--tile", 32, "--overlap", 8)
    assert "cam would have to be trained once for each image size" in sentence(50, "--detector", "cam")
    assert "--budget 0 is no time" in sentence(0)
    assert "--budget 0.001 ms is not enough: one image of " in sentence(0.001)
    assert list(tmp_path.iterdir()) == []

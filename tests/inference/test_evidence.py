import io
import json
import shutil
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from blemish import Inspector
from blemish.images import load_image
from blemish.inference import bundle, evidence
from blemish.inference.bundle import BundleError
from blemish.inference.evidence_store import EvidenceStore
from blemish.inference.inspector import Inspection
from blemish.inference.results import Drawer, Folder
from blemish.types import Region
from tests.conftest import tile
from tests.support import write_image


@pytest.fixture(scope="module")
def inspector(run: Path) -> Inspector:
    return Inspector(run, threads=1)


@pytest.fixture(scope="module")
def store(inspector: Inspector) -> EvidenceStore:
    found = evidence.open_store(inspector)
    assert found is not None
    return found


@pytest.fixture(scope="module")
def flawed(inspector: Inspector, tmp_path_factory: pytest.TempPathFactory) -> Inspection:
    """A tile with a spot at (20, 30) to (32, 42), top and left first."""
    return inspector.look(write_image(tmp_path_factory.mktemp("new") / "a.png", tile(999, (20, 30))[0]))


def with_outputs(look: Inspection, **changes: npt.NDArray[Any] | None) -> Inspection:
    assert look.prediction is not None
    return replace(look, prediction=replace(look.prediction, **changes))  # type: ignore[arg-type]


def far_from(look: Inspection) -> npt.NDArray[np.bool_]:
    """Pixels three cells and more away from the box of the one region; a cell is 2.5 pixels wide."""
    (region,) = look.verdict.regions
    left, top, right, bottom = region.box
    assert look.image is not None
    far = np.ones(look.image.shape[:2], bool)
    far[max(0, top - 8) : bottom + 8, max(0, left - 8) : right + 8] = False
    assert far.mean() > 0.2
    return far


def altered(run: Path, folder: Path, contents: bytes | None) -> Path:
    """The run's bundle with another evidence.zip, or none, and a card that vouches for it."""
    shutil.copytree(run / "bundle", folder)
    card = bundle.read(folder).card
    (folder / bundle.EVIDENCE).unlink()
    if contents is not None:
        (folder / bundle.EVIDENCE).write_bytes(contents)
    bundle.write(folder, card)
    return folder


def test_a_spot_lies_beside_the_normal_patch_nearest_to_it(
    inspector: Inspector, store: EvidenceStore, flawed: Inspection
) -> None:
    found = evidence.gather(inspector, store, flawed)
    assert found is not None
    one = found.nearest[0]
    assert one.region == flawed.verdict.regions[0]
    assert flawed.image is not None
    assert flawed.distances is not None
    assert flawed.neighbours is not None
    left, top, right, bottom = one.box
    assert left <= 36 < right  # the spot's centre
    assert top <= 26 < bottom
    assert (one.crop == flawed.image[top:bottom, left:right]).all()
    assert (one.crop == 245).any()
    # The cell of the peak, its distance and its neighbour, looked up again.
    assert flawed.map is not None
    row, column = (
        int(i) * g // n
        for i, g, n in zip(
            np.unravel_index(flawed.map.argmax(), flawed.map.shape),
            flawed.distances.shape,
            flawed.map.shape,
            strict=True,
        )
    )
    assert one.distance == pytest.approx(float(flawed.distances[row, column]))
    origin = store.origin(int(flawed.neighbours[row, column]))
    assert origin is not None
    assert one.source == store.names[origin[0]]
    assert one.source.startswith("train/good/")
    # What lies beside it has its size, is of that image, and shows no spot.
    assert one.normal is not None
    assert one.normal.shape == one.crop.shape
    assert one.normal.max() < 200
    number, there, across = origin
    middle = [(at + 0.5) / cells for at, cells in zip((there, across), flawed.distances.shape, strict=True)]
    offset = [(at + 0.5) / cells for at, cells in zip((row, column), flawed.distances.shape, strict=True)]
    whole = np.asarray(Image.fromarray(store.image(number)).resize((80, 60), Image.Resampling.BICUBIC), np.float32)
    at = [round((m - o) * size) for m, o, size in zip(middle, offset, (60, 80), strict=True)]
    y = min(max(top + at[0], 0), 60 - one.crop.shape[0])
    x = min(max(left + at[1], 0), 80 - one.crop.shape[1])
    same = whole[y : y + one.crop.shape[0], x : x + one.crop.shape[1]]
    assert np.abs(same - one.normal).mean() < 12  # to half a pixel


def test_p_values_by_hand(inspector: Inspector, store: EvidenceStore, flawed: Inspection) -> None:
    rule = inspector.card.decision
    assert len(rule.distances) == 19
    region = flawed.verdict.regions[0]
    assert region.p_value == pytest.approx((1 + sum(peak >= region.peak for peak in rule.map_maxima)) / 20)
    for cell in ((0, 0), (12, 16)):
        assert flawed.distances is not None
        distance = float(np.sort(rule.distances)[7])
        distances = flawed.distances.copy()
        distances[cell] = distance
        x, y = round((cell[1] + 0.5) * 80 / distances.shape[1]), round((cell[0] + 0.5) * 60 / distances.shape[0])
        one = evidence.compare(with_outputs(flawed, distances=distances[None]), store, inspector.card, (x, y))
        assert one is not None
        assert one.distance == pytest.approx(distance)
        wanted = (1 + sum(d >= one.distance for d in rule.distances)) / 20
        assert one.p_value == pytest.approx(wanted)
        assert one.region is None
    # Where nothing is guaranteed, the good images were learned from, and there is none.
    blank = inspector.card.model_copy(update={"decision": rule.model_copy(update={"distances": ()})})
    one = evidence.compare(flawed, store, blank, region)
    assert one is not None
    assert one.p_value is None


def test_repaired_the_verdict_is_good(
    inspector: Inspector, store: EvidenceStore, flawed: Inspection, tmp_path: Path
) -> None:
    found = evidence.gather(inspector, store, flawed)
    assert found is not None
    inpainted = found.counterfactual
    assert inpainted is not None
    assert inpainted.decision == "good"
    assert inpainted.p_value is not None
    assert inpainted.p_value > 0.05
    assert flawed.image is not None
    assert inpainted.image.shape == flawed.image.shape
    assert inpainted.image[20:32, 30:42].max() < 200  # the spot is gone
    changed = (inpainted.image != flawed.image).any(2)
    assert not changed[far_from(flawed)].any()
    assert found.sentence() == f"With this region inpainted, the verdict would be good (p = {inpainted.p_value:.2g})."
    again = inspector.inspect(write_image(tmp_path / "inpainted.png", inpainted.image))
    assert again.decision == "good"


def test_a_repair_that_does_not_help_says_so(inspector: Inspector, store: EvidenceStore, tmp_path: Path) -> None:
    two = tile(998, (4, 4))[0]
    two[40:52, 60:72] = 245
    look = inspector.look(write_image(tmp_path / "two.png", two))
    regions = look.verdict.regions
    assert len(regions) == 2
    whole = evidence.gather(inspector, store, look)
    assert whole is not None
    assert whole.counterfactual is not None
    assert whole.counterfactual.decision == "good"
    assert whole.sentence().startswith("With these 2 regions inpainted, the verdict would be good")
    half = evidence.gather(inspector, store, replace(look, verdict=replace(look.verdict, regions=regions[:1])))
    assert half is not None
    assert half.counterfactual is not None
    assert half.counterfactual.decision == "anomaly"
    assert half.counterfactual.score > inspector.card.decision.threshold
    assert half.sentence().startswith("With this region inpainted, it would still be an anomaly (p = 0.05): more than")


def test_what_has_no_evidence(inspector: Inspector, store: EvidenceStore, flawed: Inspection, tmp_path: Path) -> None:
    good = inspector.look(write_image(tmp_path / "good.png", tile(901)[0]))
    assert good.verdict.decision == "good"
    assert evidence.gather(inspector, store, good) is None
    (tmp_path / "broken.png").write_bytes(b"x")
    assert evidence.gather(inspector, store, inspector.look(tmp_path / "broken.png")) is None
    boxless = replace(flawed, verdict=replace(flawed.verdict, regions=()))
    assert evidence.gather(inspector, store, boxless) is None
    old = evidence.gather(inspector, store, with_outputs(flawed, neighbours=None, distances=None))
    assert old is not None
    assert (old.nearest, old.counterfactual, old.sentence()) == ((), None, "")


def test_an_autoencoders_own_repair_is_taken(inspector: Inspector, flawed: Inspection) -> None:
    """Without any memory: what it painted, here a flat grey, only where the regions are."""
    assert flawed.image is not None
    assert flawed.map is not None
    painted = np.full((*flawed.map.shape, 3), 77, np.uint8)
    found = evidence.counterfactual(inspector, None, with_outputs(flawed, reconstruction=painted[None]))
    assert found is not None
    assert (found.image[22:30, 32:40] == 77).all()
    far = far_from(flawed)
    assert (found.image[far] == flawed.image[far]).all()
    assert evidence.counterfactual(inspector, None, flawed) is None


def test_a_patch_whose_image_did_not_fit(inspector: Inspector, store: EvidenceStore, flawed: Inspection) -> None:
    table = store.table.copy()
    table[:, 0] = -1
    found = evidence.gather(inspector, replace(store, table=table), flawed)
    assert found is not None
    one = found.nearest[0]
    assert (one.source, one.normal) == (None, None)
    assert one.distance > 0
    if found.counterfactual:  # nothing could be put in its place
        assert found.counterfactual.decision == "anomaly"


@pytest.mark.parametrize(
    ("box", "least", "wanted"),
    [
        ((10, 10, 12, 12), (6, 4), (8, 9, 14, 13)),
        ((0, 0, 2, 2), (6, 4), (0, 0, 6, 4)),  # moved in
        ((38, 18, 40, 20), (6.5, 4), (33, 16, 40, 20)),  # rounded up
        ((5, 5, 30, 15), (6, 4), (5, 5, 30, 15)),  # large enough
        ((0, 0, 40, 20), (99, 99), (0, 0, 40, 20)),
    ],
)
def test_crops_by_hand(box: evidence.Box, least: tuple[float, float], wanted: evidence.Box) -> None:
    assert evidence._frame(box, (40, 20), least) == wanted


def test_the_peak_is_the_regions_own() -> None:
    """Boxes of two regions overlap: each has its own peak."""
    heat = np.zeros((8, 8), np.float32)
    heat[2, 2], heat[4, 5] = 5, 9
    x, y = evidence._peak(heat, Region((0, 0, 60, 50), 1.0, 5.0), (80, 80))
    assert (x, y) == (2.5 / 8, 2.5 / 8)
    x, y = evidence._peak(heat, Region((0, 0, 60, 50), 1.0, 9.0), (80, 80))
    assert (x, y) == (5.5 / 8, 4.5 / 8)


def test_a_small_overlay_on_a_large_image_is_exact() -> None:
    image = np.random.default_rng(0).integers(0, 256, (90, 120, 3), dtype=np.uint8)
    alpha = np.zeros((30, 40), np.float32)
    alpha[10:20, 8:16] = 1
    found = evidence._composed(image, np.full((30, 40, 3), 50, np.float32), alpha)
    assert (found[32:58, 26:46] == 50).all()
    between = (found[28:32, 30:40] != 50) & (found[28:32, 30:40] != image[28:32, 30:40])
    assert between.any()  # the edge is spread over the enlarged pixels
    outside = np.ones((90, 120), bool)
    outside[27:63, 21:51] = False
    assert (found[outside] == image[outside]).all()
    assert evidence._composed(image, np.zeros((30, 40, 3), np.float32), alpha * 0) is image


def test_evidence_is_verified_with_the_bundle(run: Path, tmp_path: Path) -> None:
    shutil.copytree(run / "bundle", tmp_path / "b")
    file = tmp_path / "b" / bundle.EVIDENCE
    content = file.read_bytes()
    file.write_bytes(content[:-1])
    with pytest.raises(BundleError, match=r"evidence\.zip is damaged"):
        Inspector(tmp_path / "b")
    file.unlink()
    with pytest.raises(BundleError, match=r"evidence\.zip is missing"):
        Inspector(tmp_path / "b")
    with pytest.raises(BundleError, match=r"evidence\.zip of this bundle cannot be read"):
        evidence.open_store(Inspector(altered(run, tmp_path / "c", b"no archive")))
    assert evidence.open_store(Inspector(altered(run, tmp_path / "d", None))) is None


def test_every_learned_image_is_there(run: Path, product: Path, store: EvidenceStore, inspector: Inspector) -> None:
    with zipfile.ZipFile(io.BytesIO(inspector.evidence or b"")) as archive:
        names = json.loads(archive.read("names.json"))
    assert len(names) == 21
    assert len(store.table) == 300
    counts = np.bincount(store.table[:, 0])
    assert (np.diff(counts) <= 0).all()  # those with most patches come first
    for number in (0, 20):
        seen = np.asarray(Image.fromarray(load_image(product / names[number])).resize((256, 192), 2), np.float32)
        assert np.abs(store.image(number) - seen).mean() < 3


def test_what_is_written(inspector: Inspector, store: EvidenceStore, flawed: Inspection, tmp_path: Path) -> None:
    found = evidence.gather(inspector, store, flawed)
    assert found is not None
    assert found.counterfactual is not None
    images, plainly = (Drawer(tmp_path / "out", inspector, evidence=asked) for asked in (True, False))
    with Folder(tmp_path / "out") as folder:
        folder.add(images.draw(flawed, folder.unique("deep/a.png")))
        folder.add(images.draw(inspector.look(tmp_path / "missing.png"), "b.png"))
        folder.add(plainly.draw(flawed, "c.png"))
    bad, missing, plain = (
        json.loads(line) for line in (tmp_path / "out/verdicts.jsonl").read_text("utf-8").split("\n")[:3]
    )
    one = found.nearest[0]
    assert bad["evidence"][0] == {
        "box": list(flawed.verdict.regions[0].box),
        "source": one.source,
        "distance": one.distance,
        "p_value": one.p_value,
        "file": "evidence/deep/a.png.jpg",
    }
    inpainted = found.counterfactual
    assert bad["counterfactual"] == {"score": inpainted.score, "p_value": inpainted.p_value, "decision": "good"}
    assert bad["inpainted"] == "inpainted/deep/a.png.jpg"
    with Image.open(tmp_path / "out" / bad["inpainted"]) as image:
        assert np.abs(np.asarray(image, np.float32) - inpainted.image).mean() < 3
    with Image.open(tmp_path / "out/evidence/deep/a.png.jpg") as image:
        # Three crops in a row over their captions and the sentence; the first has the spot, the others none.
        bright = (np.asarray(image.convert("L"))[: image.height // 3] > 235).mean(0)
    third = len(bright) // 3
    assert bright[:third].max() > 0.2
    assert missing["evidence"] == plain["evidence"] == []
    assert missing["counterfactual"] is plain["counterfactual"] is None
    assert "inpainted" not in plain

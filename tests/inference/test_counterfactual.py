from dataclasses import replace
from pathlib import Path

import numpy as np

from blemish import Inspector
from blemish.inference.counterfactual import composed, counterfactual
from blemish.inference.evidence_store import EvidenceStore
from blemish.inference.inspector import Inspection
from tests.conftest import tile
from tests.inference.conftest import far_from, with_outputs
from tests.support import write_image


def test_the_inpainted_image_is_good(
    inspector: Inspector, store: EvidenceStore, defective: Inspection, tmp_path: Path
) -> None:
    inpainted = counterfactual(inspector, store, defective)
    assert inpainted is not None
    assert inpainted.decision == "good"
    assert inpainted.p_value is not None
    assert inpainted.p_value > 0.05
    assert defective.image is not None
    assert inpainted.image.shape == defective.image.shape
    assert inpainted.image[20:32, 30:42].max() < 200  # the spot is gone
    changed = (inpainted.image != defective.image).any(2)
    assert not changed[far_from(defective)].any()
    # Written at the image's 80 x 60 pixels it is resized once more, which the detector sees, but not as a spot.
    written = inspector.inspect(write_image(tmp_path / "inpainted.png", inpainted.image))
    assert written.score is not None
    assert defective.verdict.score is not None
    assert written.score < defective.verdict.score / 5


def test_with_one_of_two_defects_inpainted_it_is_still_an_anomaly(inspector: Inspector, store: EvidenceStore) -> None:
    two = tile(998, (4, 4))[0]
    two[40:52, 60:72] = 245
    inspection = inspector.look(two)
    regions = inspection.verdict.regions
    assert len(regions) == 2
    both = counterfactual(inspector, store, inspection)
    assert both is not None
    assert both.decision == "good"
    first = replace(inspection, verdict=replace(inspection.verdict, regions=regions[:1]))
    half = counterfactual(inspector, store, first)
    assert half is not None
    assert half.decision == "anomaly"
    assert half.score > inspector.card.decision.threshold


def test_an_autoencoders_reconstruction_is_taken_without_any_store(inspector: Inspector, defective: Inspection) -> None:
    """Here a flat grey, which is to be only where the region is."""
    assert defective.image is not None
    assert defective.map is not None
    grey = np.full((*defective.map.shape, 3), 77, np.uint8)
    inpainted = counterfactual(inspector, None, with_outputs(defective, reconstruction=grey[None]))
    assert inpainted is not None
    assert (inpainted.image[22:30, 32:40] == 77).all()
    far = far_from(defective)
    np.testing.assert_array_equal(inpainted.image[far], defective.image[far])
    assert counterfactual(inspector, None, defective) is None


def test_without_regions_or_any_source_there_is_none_or_nothing_changes(
    inspector: Inspector, store: EvidenceStore, defective: Inspection
) -> None:
    without = replace(defective, verdict=replace(defective.verdict, regions=()))
    assert counterfactual(inspector, store, without) is None
    table = store.table.copy()
    table[:, 0] = -1
    unchanged = counterfactual(inspector, replace(store, table=table), defective)
    assert unchanged is not None
    assert unchanged.image is defective.image
    assert unchanged.decision == "anomaly"


def test_content_laid_over_a_larger_image_is_exact() -> None:
    image = np.random.default_rng(0).integers(0, 256, (90, 120, 3), dtype=np.uint8)
    alpha = np.zeros((30, 40), np.float32)
    alpha[10:20, 8:16] = 1
    result = composed(image, np.full((30, 40, 3), 50, np.float32), alpha)
    assert (result[32:58, 26:46] == 50).all()
    between = (result[28:32, 30:40] != 50) & (result[28:32, 30:40] != image[28:32, 30:40])
    assert between.any()  # the edge is spread over the enlarged pixels
    outside = np.ones((90, 120), bool)
    outside[27:63, 21:51] = False
    np.testing.assert_array_equal(result[outside], image[outside])
    assert composed(image, np.zeros((30, 40, 3), np.float32), alpha * 0) is image

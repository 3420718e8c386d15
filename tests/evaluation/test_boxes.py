from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from blemish.evaluation.boxes import BoxStatistics, judge_boxes
from blemish.inference.regions import find_regions
from blemish.types import Region
from tests.support import shared_folder


def region(left: int, top: int, right: int, bottom: int) -> Region:
    return Region((left, top, right, bottom), 1.0, 1.0)


def test_which_boxes_hit() -> None:
    mask = np.zeros((100, 100), bool)
    mask[10:20, 10:20] = True
    mask[80, 10:90] = True  # a scratch 80 long

    def judged(*boxes: tuple[int, int, int, int]) -> tuple[int, int]:
        found = judge_boxes(mask, [region(*b) for b in boxes], (100, 100))
        assert (found.defects, found.boxes) == (2, len(boxes))
        return found.hit, found.right

    assert judged() == (0, 0)
    assert judged((10, 10, 20, 20)) == (1, 1)
    assert judged((15, 10, 45, 40)) == (1, 1)  # holds just half of it, IoU 0.05
    assert judged((16, 10, 46, 40)) == (0, 1)  # holds 40 %: it points there, but does not show it
    assert judged((19, 19, 60, 60)) == (0, 0)  # a corner
    assert judged((50, 30, 60, 40)) == (0, 0)  # next to it
    assert judged((0, 0, 100, 100)) == (0, 0)  # the whole image says nothing
    assert judged((10, 79, 30, 82), (40, 79, 60, 82)) == (1, 2)  # a scratch found in two pieces
    assert judged((10, 79, 30, 82)) == (0, 1)
    assert judged((10, 79, 50, 82), (10, 79, 50, 82), (60, 10, 70, 20)) == (1, 2)
    assert judged((10, 79, 49, 82), (10, 79, 49, 82)) == (0, 2)  # the same 39 pixels twice are no half


def test_boxes_of_large_defects() -> None:
    stain = np.zeros((100, 100), bool)
    stain[5:85, 5:85] = True
    # Larger than a quarter of the image, but with a high IoU; and a box well inside the defect.
    assert judge_boxes(stain, [region(0, 0, 100, 100)], (100, 100)) == BoxStatistics(1, 1, 1, 1)
    assert judge_boxes(stain, [region(30, 30, 40, 40)], (100, 100)) == BoxStatistics(1, 0, 1, 1)


def test_a_large_box_that_fits_a_large_defect_shows_the_small_one_within() -> None:
    mask = np.zeros((100, 100), bool)
    mask[5:95, 5:45] = True
    mask[5:95, 45:95] = np.arange(45, 95) % 50 == 0  # a line at 50, apart from the stain
    assert judge_boxes(mask, [region(5, 5, 60, 95)], (100, 100)) == BoxStatistics(2, 2, 1, 1)


@pytest.mark.real
@pytest.mark.parametrize(
    ("folder", "pattern", "least"),
    [
        ("data/kolektorsdd/ground_truth/defect", "*.png", 1.0),
        ("data/cookies/ground_truth/cracked", "*.png", 1.0),
        ("data/magnetic-tile", "MT_*/Imgs/*.png", 1.0),
    ],
)
def test_the_box_rule_on_real_defects(folder: str, pattern: str, least: float) -> None:
    """A map that marks exactly the cells with a defect must score near 1; a box around the image must not."""
    counts = {"exact": np.zeros(4), "everything": np.zeros(4), "elsewhere": np.zeros(4)}
    for path in sorted(shared_folder(folder).glob(pattern)):
        with Image.open(path) as image:
            mask = np.asarray(image.convert("L")) > 127
        if not mask.any():
            continue
        size = (mask.shape[1], mask.shape[0])
        cells = Image.fromarray(mask.astype(np.float32)).resize((32, 32), Image.Resampling.BOX)
        exact_boxes = find_regions((np.asarray(cells) > 0).astype(np.float32), 0.5, size)
        turned = [region(*(size[0] - r.box[2], size[1] - r.box[3], size[0] - r.box[0], size[1] - r.box[1]))
                  for r in exact_boxes]  # fmt: skip
        boxes = {"exact": exact_boxes, "everything": [region(0, 0, *size)], "elsewhere": turned}
        for kind, drawn in boxes.items():
            found = judge_boxes(mask, drawn, size)
            counts[kind] += found.defects, found.hit, found.boxes, found.right
    shares = {kind: (hit / defects, right / boxes) for kind, (defects, hit, boxes, right) in counts.items()}
    assert min(shares["exact"]) >= least
    assert max(shares["everything"]) <= 0.25
    assert shares["elsewhere"][0] <= 0.4


def test_boxes_are_in_pixels_of_the_image_whatever_the_size_of_the_mask() -> None:
    mask = np.zeros((50, 50), bool)
    mask[10:20, 20:30] = True
    assert judge_boxes(mask, [region(200, 100, 300, 200)], (500, 500)) == BoxStatistics(1, 1, 1, 1)
    assert judge_boxes(None, [region(0, 0, 5, 5)] * 3, (500, 500)) == BoxStatistics(0, 0, 3, 0)
    with pytest.raises(ValueError, match="outside"):
        judge_boxes(mask, [region(600, 600, 700, 700)], (500, 500))

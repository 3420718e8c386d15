import io

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image, ImageFilter

from blemish.inference.evidence_store import EvidenceStore
from blemish.inference.inpainting import fill, soft

SHAPE, GRID = (64, 96), (8, 12)


def texture(seed: int) -> npt.NDArray[np.uint8]:
    noise = np.random.default_rng(seed).integers(0, 256, (*SHAPE, 3), dtype=np.uint8)
    smooth = np.asarray(Image.fromarray(noise).filter(ImageFilter.GaussianBlur(2)), np.float32)
    return np.clip(128 + 3 * (smooth - 128), 30, 225).astype(np.uint8)


def store_of(*images: npt.NDArray[np.uint8], table: npt.NDArray[np.int32]) -> EvidenceStore:
    jpegs = []
    for pixels in images:
        content = io.BytesIO()
        Image.fromarray(pixels).save(content, "JPEG", quality=98, subsampling=0)
        jpegs.append(content.getvalue())
    return EvidenceStore(table, tuple(f"{i}.png" for i in range(len(images))), SHAPE, tuple(jpegs))


def test_the_edge_fades_over_a_cell() -> None:
    cells = np.zeros((4, 4), bool)
    cells[:, 2:] = True
    line = soft(cells, (32, 32))[16]
    assert (line[:11] == 0).all()
    assert (line[21:] == 1).all()
    assert line[15] + line[16] == pytest.approx(1, abs=0.02)  # half at the cells' edge
    assert (np.diff(line) >= 0).all()


@pytest.mark.parametrize(("down", "right", "light"), [(0, 0, 0), (5, -9, 0), (5, -9, 20)])
def test_a_hole_is_filled_from_the_place_of_a_good_image_that_continues_it(down: int, right: int, light: int) -> None:
    """The image is a shifted, brighter copy of the second of three good images. The neighbours of the patches around
    the hole name that image, and the place in it to a cell; the hole's content is then found to the pixel."""
    good = [texture(seed) for seed in range(3)]
    moved = np.roll(good[1], (-down, -right), (0, 1))
    image = np.clip(moved.astype(int) + light, 0, 255).astype(np.uint8)
    cells = np.zeros(GRID, bool)
    cells[3:5, 5:8] = True
    holed = image.copy()
    holed[24:40, 40:64] = (255, 0, 0)
    rows, columns = np.indices(GRID)
    source = np.clip(rows + round(down / 8), 0, 7), np.clip(columns + round(right / 8), 0, 11)
    table = np.stack([np.ones(GRID), *source], -1).reshape(-1, 3).astype(np.int32)
    table[::7, 0] = 2  # some name another image,
    table[::11, 0] = -1  # and some have none
    neighbours = np.arange(96, dtype=np.int32).reshape(GRID)
    content, known = fill(holed, neighbours, store_of(*good, table=table), cells)
    assert (known[24:40, 40:64] == 1).all()
    assert known.sum() == 4 * 5 * 64  # and a cell around, for the fade
    inside = known > 0
    assert np.abs(content[inside] - image[inside]).mean() < 4  # JPEG
    assert (content[~inside] == 0).all()


def test_without_any_source_nothing_is_filled() -> None:
    table = np.full((96, 3), -1, np.int32)
    cells = np.zeros(GRID, bool)
    cells[2, 2] = True
    neighbours = np.zeros(GRID, np.int32)
    assert not fill(texture(0), neighbours, store_of(table=table), cells)[1].any()


def test_a_whole_image_and_an_edge_can_be_filled() -> None:
    good = texture(4)
    rows, columns = np.indices(GRID)
    table = np.stack([np.zeros(GRID), rows, columns], -1).reshape(-1, 3).astype(np.int32)
    neighbours = np.arange(96, dtype=np.int32).reshape(GRID)
    corner = np.zeros(GRID, bool)
    corner[:2, :2] = True
    for cells in (np.ones(GRID, bool), corner):
        content, known = fill(np.zeros_like(good), neighbours, store_of(good, table=table), cells)
        assert known[:16, :16].all()
        if cells.all():  # there is no band to compare
            assert np.abs(content - good).mean() < 4
    holed = good.copy()
    holed[:16, :16] = 0
    content, _ = fill(holed, neighbours, store_of(good, table=table), corner)
    assert np.abs(content[:16, :16] - good[:16, :16]).mean() < 4

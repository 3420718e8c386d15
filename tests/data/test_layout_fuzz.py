"""Random folders of good images, defect types, masks, litter and links: every file is counted once, and no litter and
no mask is ever good or defective."""

from __future__ import annotations

import io
import os
import shutil
import tempfile
from pathlib import Path

import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from blemish.data.audit import audit
from blemish.data.layouts import read
from blemish.types import BlemishError


def _png(picture: bool) -> bytes:
    pixels = np.zeros((8, 8), np.uint8)
    pixels[2:4, 2:5] = 255
    if picture:
        pixels = np.random.default_rng(0).integers(60, 190, (8, 8)).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


PICTURE, MASK, BROKEN = _png(True), _png(False), b"not an image"
# Each place says what its files are: (folder, is it good, a type, a mask, litter)
GOOD = ["good", "good/2024-05-01", "good/camera 2/left"]
TYPES = ["NG", "dent", "NG/day", "photo mask"]
MASKS = ["mask", "ground_truth/NG", "NG/mask", "NG_mask", "GT", "good/masks", "dent/gt", "labels/dent", "masks/good"]
LITTER = ["@eaDir", "good/@eaDir/0.png", "NG/$RECYCLE.BIN", "#recycle", "__MACOSX/good", "good/thumbnails", ".cache/x"]
OWN = ["run", "good/seen"]
names = st.sampled_from(["0", "1", "2_mask", "3_GT", "day.4", "ä 5"])
endings = st.sampled_from([".png", ".PNG", ".jfif", ".txt", ".heic", "", ".png.part"])


def files(places: list[str], content: st.SearchStrategy[bytes]) -> st.SearchStrategy[list[tuple[str, bytes]]]:
    name = st.tuples(st.sampled_from(places), names, endings).map(lambda parts: f"{parts[0]}/{parts[1]}{parts[2]}")
    return st.lists(st.tuples(name, content), max_size=5)


links = st.lists(st.tuples(st.sampled_from([*GOOD, *TYPES, "mask", ""]), st.sampled_from([*GOOD, *TYPES, "mask", "."])))


@settings(max_examples=100, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(
    files(GOOD, st.sampled_from([PICTURE, PICTURE, BROKEN])),
    files(TYPES, st.sampled_from([PICTURE, PICTURE, BROKEN])),
    files(MASKS, st.just(MASK)),
    files(LITTER, st.just(PICTURE)),
    files(OWN, st.just(PICTURE)),
    links,
)
def test_every_file_is_counted_once_and_no_litter_or_mask_is_a_part(
    good: list[tuple[str, bytes]],
    types: list[tuple[str, bytes]],
    masks: list[tuple[str, bytes]],
    litter: list[tuple[str, bytes]],
    own: list[tuple[str, bytes]],
    links: list[tuple[str, str]],
) -> None:
    root = Path(tempfile.mkdtemp(prefix="fuzz-"))
    try:
        for name, content in [("good/x0.png", PICTURE), *good, *types, *masks, *litter, *own]:
            _write(root / name, content)
        for place in OWN:
            if (root / place).is_dir():
                _write(root / place / ".blemish", b"")
        for i, (place, target) in enumerate(links):
            if (root / place).is_dir():
                (root / place / f"link{i}").symlink_to(root / target)
                if place:  # images in the root too would be ambiguous
                    (root / place / f"link{i}.png").symlink_to(root / target / "0.png")
        _check(root)
    finally:
        shutil.rmtree(root)


def _check(root: Path) -> None:
    entries = sum(len(f) + sum(Path(p, d).is_symlink() for d in d_) for p, d_, f in os.walk(root))
    try:
        dataset = read(root)
    except BlemishError:  # in words: nothing was read as what it is not
        return
    counted = audit(dataset).files
    assert counted.all == entries
    assert counted.images + counted.masks + counted.refused + sum(counted.left_out.values()) == entries
    real = [os.path.realpath(sample.path) for sample in dataset.samples if sample.path.exists()]
    assert len(set(real)) == len(real)
    for sample in dataset.samples:
        content = sample.path.read_bytes() if sample.path.exists() else BROKEN
        assert content != MASK, sample.name
        parts = Path(os.path.relpath(os.path.realpath(sample.path), os.path.realpath(root))).as_posix()
        assert not any(parts == place or parts.startswith(f"{place}/") for place in (*LITTER, *OWN)), parts
        kind = sample.name.split("/")[0]
        assert (sample.label == "good") == (kind == "good")


def _write(path: Path, content: bytes) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    except (FileExistsError, IsADirectoryError, NotADirectoryError):  # the place is taken by another kind of thing
        pass

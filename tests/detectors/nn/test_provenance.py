import io
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from blemish.detectors.nn.provenance import Sources, write_evidence
from blemish.inference.evidence_store import read_store
from blemish.types import BlemishError, Sample
from tests.conftest import tile
from tests.support import write_image

# Of four images the third gave most patches, the second none.
TABLE = np.array([[2, 0, 1], [0, 3, 4], [2, 5, 5], [3, 1, 1], [2, 2, 2], [3, 0, 0]], np.int32)


@pytest.fixture
def sources(tmp_path: Path) -> Sources:
    samples = [Sample(write_image(tmp_path / f"{i}.png", tile(i)[0]), f"good/{i}ü.png") for i in range(4)]
    return Sources(tuple(samples), TABLE)


def test_images_with_most_patches_come_first(sources: Sources, tmp_path: Path) -> None:
    assert write_evidence(sources, (48, 64), tmp_path / "e.zip", 8) == 3
    store = read_store((tmp_path / "e.zip").read_bytes(), (48, 64))
    assert store.names == ("good/2ü.png", "good/3ü.png", "good/0ü.png")
    assert store.table.tolist() == [[0, 0, 1], [2, 3, 4], [0, 5, 5], [1, 1, 1], [0, 2, 2], [1, 0, 0]]
    assert store.table.dtype == np.int32
    assert store.origin(1) == (2, 3, 4)
    wanted = np.asarray(Image.open(sources.samples[2].path).resize((64, 48), Image.Resampling.BILINEAR), np.float32)
    assert np.abs(store.image(0).astype(np.float32) - wanted).mean() < 3  # but for JPEG
    with zipfile.ZipFile(tmp_path / "e.zip") as archive:
        assert archive.namelist() == ["sources.npy", "names.json", "000.jpg", "001.jpg", "002.jpg"]
        with Image.open(io.BytesIO(archive.read("000.jpg"))) as image:
            assert (image.format, image.size) == ("JPEG", (64, 48))


def test_the_same_sources_give_the_same_bytes(sources: Sources, tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_evidence(sources, (48, 64), tmp_path / name, 8)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_what_does_not_fit_is_left_out(sources: Sources, tmp_path: Path) -> None:
    write_evidence(sources, (48, 64), tmp_path / "all.zip", 8)
    whole = (tmp_path / "all.zip").stat().st_size / 1e6
    counts = []
    for share in (0, 0.3, 0.6, 0.9, 1.05):
        counts.append(write_evidence(sources, (48, 64), tmp_path / "some.zip", share * whole))
        content = (tmp_path / "some.zip").read_bytes()
        store = read_store(content, (48, 64))
        assert counts[-1] == 0 or len(content) <= share * whole * 1e6
        assert len(store.names) == counts[-1]
        of = {2: 0, 3: 1, 0: 2}  # by number of patches
        kept = {image: new for image, new in of.items() if new < counts[-1]}
        assert store.table[:, 0].tolist() == [kept.get(int(image), -1) for image in TABLE[:, 0]]
        assert store.table[:, 1:].tolist() == TABLE[:, 1:].tolist()
        if counts[-1] < 3:
            assert store.origin(1) is None
    assert counts[0] == 0
    assert counts[-1] == 3
    assert counts == sorted(counts)
    assert len(set(counts)) >= 3
    with pytest.raises(BlemishError, match="number of megabytes, not -1"):
        write_evidence(sources, (48, 64), tmp_path / "x.zip", -1)

import io
import json
import zipfile

import numpy as np
import pytest
from PIL import Image

from blemish.inference.bundle import BundleError
from blemish.inference.evidence_store import DECODED, EvidenceStore, read_store

SIZE = (16, 24)


def files(images: int = 2) -> dict[str, bytes]:
    content = io.BytesIO()
    np.save(content, np.array([[0, 1, 2], [-1, 0, 0], [1, 1, 1]], np.int32))
    contents = {
        "sources.npy": content.getvalue(),
        "names.json": json.dumps([f"{i}.png" for i in range(images)]).encode(),
    }
    for i in range(images):
        jpeg = io.BytesIO()
        Image.new("RGB", (SIZE[1], SIZE[0]), (i, 100, 0)).save(jpeg, "JPEG")
        contents[f"{i:03}.jpg"] = jpeg.getvalue()
    return contents


def packed(content: dict[str, bytes]) -> bytes:
    whole = io.BytesIO()
    with zipfile.ZipFile(whole, "w") as archive:
        for name, data in content.items():
            archive.writestr(name, data)
    return whole.getvalue()


def test_a_store_is_read() -> None:
    store = read_store(packed(files()), SIZE)
    assert store.names == ("0.png", "1.png")
    assert [store.origin(i) for i in range(3)] == [(0, 1, 2), None, (1, 1, 1)]
    assert store.image(1).shape == (*SIZE, 3)
    assert np.abs(store.image(0).astype(int) - (0, 100, 0)).max() < 4


def test_not_all_images_are_held_at_once() -> None:
    store = read_store(packed(files(DECODED + 5)), SIZE)
    for number in range(DECODED + 5):
        assert int(store.image(number)[0, 0, 0]) == pytest.approx(number, abs=3)
    assert len(store._decoded) == DECODED
    assert int(store.image(0)[0, 0, 0]) == pytest.approx(0, abs=3)


def npy(array: object) -> bytes:
    content = io.BytesIO()
    np.save(content, np.asarray(array), allow_pickle=True)
    return content.getvalue()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sources.npy": None}, "it has no sources.npy"),
        ({"names.json": None}, "it has no names.json"),
        ({"001.jpg": None}, "it has no 001.jpg"),
        ({"names.json": b"{"}, "cannot be read"),
        ({"names.json": b"7"}, "cannot be read"),
        ({"names.json": b"[1, 2]"}, "names.json has the wrong form"),
        ({"sources.npy": b"no array"}, "cannot be read"),
        ({"sources.npy": npy([[0, 1]])}, "sources.npy has the wrong form"),
        ({"sources.npy": npy(np.zeros((1, 3)))}, "sources.npy has the wrong form"),
        ({"sources.npy": npy([{"a": 1}])}, "cannot be read"),  # a pickle is never opened
        ({"sources.npy": npy(np.array([[2, 0, 0]], np.int32))}, "names images that are not in it"),
    ],
)
def test_a_wrong_or_damaged_file_is_refused_in_a_sentence(changes: dict[str, bytes | None], message: str) -> None:
    content = files() | changes
    with pytest.raises(BundleError, match=message) as caught:
        read_store(packed({name: data for name, data in content.items() if data is not None}), SIZE)
    assert "train it again, or inspect with --no-evidence" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_broken_archives_and_images_are_refused() -> None:
    with pytest.raises(BundleError, match=r"evidence\.zip of this bundle cannot be read"):
        read_store(b"no archive", SIZE)
    store: EvidenceStore = read_store(packed(files() | {"001.jpg": b"no image"}), SIZE)
    assert store.image(0).shape == (*SIZE, 3)
    with pytest.raises(BundleError, match=r"001\.jpg"):
        store.image(1)
    with pytest.raises(BundleError, match="not of the card's image size"):
        read_store(packed(files()), (8, 8)).image(0)

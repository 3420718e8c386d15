import io
import json
import zipfile

import numpy as np
import pytest
from PIL import Image

from blemish.inference.bundle import BundleError
from blemish.inference.evidence_store import DECODED, Memory, read_memory

SIZE = (16, 24)


def files(pictures: int = 2) -> dict[str, bytes]:
    content = io.BytesIO()
    np.save(content, np.array([[0, 1, 2], [-1, 0, 0], [1, 1, 1]], np.int32))
    found = {
        "sources.npy": content.getvalue(),
        "names.json": json.dumps([f"{i}.png" for i in range(pictures)]).encode(),
    }
    for i in range(pictures):
        jpeg = io.BytesIO()
        Image.new("RGB", (SIZE[1], SIZE[0]), (i, 100, 0)).save(jpeg, "JPEG")
        found[f"{i:03}.jpg"] = jpeg.getvalue()
    return found


def packed(content: dict[str, bytes]) -> bytes:
    whole = io.BytesIO()
    with zipfile.ZipFile(whole, "w") as archive:
        for name, data in content.items():
            archive.writestr(name, data)
    return whole.getvalue()


def test_what_is_in_it() -> None:
    memory = read_memory(packed(files()), SIZE)
    assert memory.names == ("0.png", "1.png")
    assert [memory.origin(i) for i in range(3)] == [(0, 1, 2), None, (1, 1, 1)]
    assert memory.picture(1).shape == (*SIZE, 3)
    assert np.abs(memory.picture(0).astype(int) - (0, 100, 0)).max() < 4


def test_not_all_pictures_are_held_at_once() -> None:
    memory = read_memory(packed(files(DECODED + 5)), SIZE)
    for number in range(DECODED + 5):
        assert int(memory.picture(number)[0, 0, 0]) == pytest.approx(number, abs=3)
    assert len(memory._decoded) == DECODED
    assert int(memory.picture(0)[0, 0, 0]) == pytest.approx(0, abs=3)


def npy(array: object) -> bytes:
    content = io.BytesIO()
    np.save(content, np.asarray(array), allow_pickle=True)
    return content.getvalue()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"sources.npy": None}, "it has no sources.npy"),
        ({"names.json": None}, "it has no names.json"),
        ({"001.jpg": None}, "it has no 001.jpg"),
        ({"names.json": b"{"}, "cannot be read"),
        ({"names.json": b"7"}, "cannot be read"),
        ({"names.json": b"[1, 2]"}, "names.json is not what it should be"),
        ({"sources.npy": b"no array"}, "cannot be read"),
        ({"sources.npy": npy([[0, 1]])}, "sources.npy or names.json is not what"),
        ({"sources.npy": npy(np.zeros((1, 3)))}, "sources.npy or names.json is not what"),
        ({"sources.npy": npy([{"a": 1}])}, "cannot be read"),  # a pickle is never opened
        ({"sources.npy": npy(np.array([[2, 0, 0]], np.int32))}, "speaks of pictures that are not there"),
    ],
)
def test_what_is_none_is_refused_in_a_sentence(changes: dict[str, bytes | None], said: str) -> None:
    content = files() | changes
    with pytest.raises(BundleError, match=said) as caught:
        read_memory(packed({name: data for name, data in content.items() if data is not None}), SIZE)
    assert "train it again, or inspect with --no-evidence" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_broken_archives_and_pictures_are_refused() -> None:
    with pytest.raises(BundleError, match=r"evidence\.zip of this bundle cannot be read"):
        read_memory(b"no archive", SIZE)
    memory: Memory = read_memory(packed(files() | {"001.jpg": b"no picture"}), SIZE)
    assert memory.picture(0).shape == (*SIZE, 3)
    with pytest.raises(BundleError, match=r"001\.jpg"):
        memory.picture(1)
    with pytest.raises(BundleError, match="not of the card's image size"):
        read_memory(packed(files()), (8, 8)).picture(0)

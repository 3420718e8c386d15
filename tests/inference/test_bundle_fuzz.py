"""Bundles with damage in every place: each is refused in one sentence, or gives the same verdicts."""

from __future__ import annotations

import copy
import hashlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from blemish import BlemishError, Inspector
from blemish.inference import bundle
from tests import tiny

IMAGES = [np.full((7, 9, 3), grey, np.uint8) for grey in (50, 95, 130)]
FLIPS = (1, 0x80, 0xFF)


@pytest.fixture(scope="module")
def healthy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.made(tmp_path_factory.mktemp("healthy") / "b")


def verdicts(path: Path) -> list[dict[str, Any]] | None:
    """The verdicts of the bundle, which are valid JSON; None where it is refused in a sentence."""
    try:
        inspector = Inspector(path, threads=1)
    except BlemishError as refusal:
        sentence = str(refusal)
    else:
        rows = [inspector.inspect(image).to_json() for image in IMAGES]
        json.dumps(rows, allow_nan=False)
        return rows
    assert "\n" not in sentence
    assert sentence.endswith(".")
    return None


def changed(data: bytes) -> Iterator[bytes]:
    """The bytes with each one changed, in one of three ways."""
    for place in range(len(data)):
        mutable = bytearray(data)
        mutable[place] ^= FLIPS[place % len(FLIPS)]
        yield bytes(mutable)


@pytest.mark.parametrize("name", [bundle.MODEL, bundle.CARD])
def test_every_byte_of_a_folder(healthy: Path, tmp_path: Path, name: str) -> None:
    folder, same = shutil.copytree(healthy, tmp_path / "b"), verdicts(healthy)
    refused = 0
    for data in changed((healthy / name).read_bytes()):
        (folder / name).write_bytes(data)
        outcome = verdicts(folder)
        assert outcome in (None, same)
        refused += outcome is None
    assert refused > 0.95 * len(data)


def test_every_byte_of_a_zip(healthy: Path, tmp_path: Path) -> None:
    bundle.pack(healthy, tmp_path / "b.zip")
    data, same = (tmp_path / "b.zip").read_bytes(), verdicts(healthy)
    for damaged in changed(data):
        (tmp_path / "b.zip").write_bytes(damaged)
        assert verdicts(tmp_path / "b.zip") in (None, same)


def test_every_length_of_a_zip_and_of_its_files(healthy: Path, tmp_path: Path) -> None:
    bundle.pack(healthy, tmp_path / "b.zip")
    for path in (tmp_path / "b.zip", *sorted(shutil.copytree(healthy, tmp_path / "b").iterdir())):
        data = path.read_bytes()
        for length in [*range(0, len(data), 7), len(data) - 1]:
            path.write_bytes(data[:length])
            assert verdicts(path if path.suffix == ".zip" else path.parent) is None or length > len(data) - 2
        path.write_bytes(data)


def test_every_byte_of_a_graph_whose_card_was_made_to_fit(healthy: Path, tmp_path: Path) -> None:
    """Whatever the graph then is: no stack trace, and no verdict that is no JSON."""
    folder, content = shutil.copytree(healthy, tmp_path / "b"), tiny.content_of(healthy)
    for data in changed((healthy / bundle.MODEL).read_bytes()):
        (folder / bundle.MODEL).write_bytes(data)
        content["files"][bundle.MODEL]["sha256"] = hashlib.sha256(data).hexdigest()
        verdicts(tiny.sealed(folder, content))


def leaves(content: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The places of a JSON document, parts and wholes."""
    yield path
    pairs = content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else ()
    for key, value in pairs:
        yield from leaves(value, (*path, key))


NUMBERS = st.one_of(
    st.sampled_from([0, -1, 1, 2**31, 2**53, 2**64, -(2**64), 10**30, 10**400, 1e308, -1e308, 5e-324, 0.5, 200_000]),
    st.floats(),
    st.integers(),
)
TEXTS = st.text(max_size=5) | st.sampled_from(["", "../x", "a\nb", "\ud800"])
SCALARS = st.none() | st.booleans() | NUMBERS | TEXTS
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner, max_size=3)
)
FRAMED = {
    "size": [10, 8],
    "map_size": [4, 5],
    "tile": [5, 4],
    "overlap": 1,
    "tiles": [[0, 0], [5, 4]],
    "roi": False,
    "align": "",
    "least_correlation": 0.0,
}


@settings(max_examples=400, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(data=st.data(), framed=st.booleans())
def test_any_value_in_a_card(
    healthy: Path, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject, framed: bool
) -> None:
    folder = shutil.copytree(healthy, tmp_path_factory.getbasetemp() / "any", dirs_exist_ok=True)
    content: Any = copy.deepcopy(tiny.content_of(healthy)) | ({"frame": copy.deepcopy(FRAMED)} if framed else {})
    *parents, last = data.draw(st.sampled_from([path for path in leaves(content) if path]))
    place = content
    for key in parents:
        place = place[key]
    if isinstance(place, dict) and data.draw(st.integers(0, 9)) == 0:
        del place[last]
    else:
        place[last] = data.draw(VALUES)
    verdicts(tiny.sealed(folder, content))

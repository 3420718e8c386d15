import io
import json
import shutil
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from blemish import Inspector
from blemish.images import load_image
from blemish.inference import bundle
from blemish.inference.bundle import BundleError
from blemish.inference.counterfactual import Counterfactual
from blemish.inference.evidence import Evidence, gather, open_store
from blemish.inference.evidence_store import EvidenceStore
from blemish.inference.inspector import Inspection
from blemish.types import Decision
from tests.conftest import tile
from tests.inference.conftest import with_outputs


def altered(run: Path, folder: Path, contents: bytes | None) -> Path:
    """The run's bundle with another evidence.zip, or none, and a card that vouches for it."""
    shutil.copytree(run / "bundle", folder)
    card = bundle.read(folder).card
    (folder / bundle.EVIDENCE).unlink()
    if contents is not None:
        (folder / bundle.EVIDENCE).write_bytes(contents)
    bundle.write(folder, card)
    return folder


def test_an_anomaly_has_a_nearest_normal_patch_a_region_and_a_counterfactual(
    inspector: Inspector, store: EvidenceStore, defective: Inspection
) -> None:
    evidence = gather(inspector, store, defective)
    assert evidence is not None
    assert [nearest.region for nearest in evidence.nearest] == list(defective.verdict.regions)
    assert evidence.regions == 1
    assert evidence.counterfactual is not None
    assert evidence.counterfactual.decision == "good"


@pytest.mark.parametrize(
    ("decision", "p_value", "regions", "expected"),
    [
        ("good", 0.41, 1, "With this region inpainted, the verdict would be good (p = 0.41)."),
        ("good", None, 2, "With these 2 regions inpainted, the verdict would be good (score 1.5)."),
        ("review", 0.08, 1, "With this region inpainted, the image would be put aside for review (p = 0.08)."),
        ("anomaly", 0.05, 3, "With these 3 regions inpainted, it would still be an anomaly (p = 0.05): something else"),
    ],
)
def test_the_counterfactual_in_words(decision: Decision, p_value: float | None, regions: int, expected: str) -> None:
    inpainted = Counterfactual(np.zeros((1, 1, 3), np.uint8), 1.5, p_value, decision)
    assert Evidence((), inpainted, regions).sentence().startswith(expected)
    assert Evidence((), None, regions).sentence() == ""


def test_what_has_no_evidence(
    inspector: Inspector, store: EvidenceStore, defective: Inspection, tmp_path: Path
) -> None:
    good = inspector.look(tile(901)[0])
    assert good.verdict.decision == "good"
    assert gather(inspector, store, good) is None
    (tmp_path / "broken.png").write_bytes(b"x")
    assert gather(inspector, store, inspector.look(tmp_path / "broken.png")) is None
    without = replace(defective, verdict=replace(defective.verdict, regions=()))
    assert gather(inspector, store, without) is None
    old = gather(inspector, store, with_outputs(defective, neighbours=None, distances=None))
    assert old is not None
    assert (old.nearest, old.counterfactual, old.sentence()) == ((), None, "")


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
        open_store(Inspector(altered(run, tmp_path / "c", b"no archive")))
    assert open_store(Inspector(altered(run, tmp_path / "d", None))) is None


def test_every_training_image_is_in_the_store(product: Path, store: EvidenceStore, inspector: Inspector) -> None:
    with zipfile.ZipFile(io.BytesIO(inspector.evidence or b"")) as archive:
        names = json.loads(archive.read("names.json"))
    assert len(names) == 21
    assert len(store.table) == 300
    counts = np.bincount(store.table[:, 0])
    assert (np.diff(counts) <= 0).all()  # those with most patches come first
    for number in (0, 20):
        seen = np.asarray(Image.fromarray(load_image(product / names[number])).resize((256, 192), 2), np.float32)
        assert np.abs(store.image(number) - seen).mean() < 3

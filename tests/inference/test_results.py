import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from blemish import BlemishError, Inspector
from blemish.files import kept
from blemish.inference.evidence import gather
from blemish.inference.evidence_store import EvidenceStore
from blemish.inference.inspector import Inspection
from blemish.inference.results import VERDICTS, ImageWriter, Result, ResultsFolder, write_images
from blemish.ownership import mark_of
from tests.inference.conftest import with_outputs


def test_what_is_written_of_an_anomaly_a_broken_file_and_without_evidence(
    inspector: Inspector, store: EvidenceStore, defective: Inspection, tmp_path: Path
) -> None:
    evidence = gather(inspector, store, defective)
    assert evidence is not None
    assert evidence.counterfactual is not None
    out = tmp_path / "out"
    with_evidence, without = (ImageWriter(out, inspector, evidence=asked) for asked in (True, False))
    with ResultsFolder(out) as folder:
        folder.add(with_evidence.write(defective, folder.unique("deep/a.png")))
        folder.add(with_evidence.write(inspector.look(tmp_path / "missing.png"), "b.png"))
        folder.add(without.write(defective, "c.png"))
    anomaly, missing, plain = (json.loads(line) for line in (out / VERDICTS).read_text("utf-8").splitlines())
    nearest, inpainted = evidence.nearest[0], evidence.counterfactual
    assert anomaly["evidence"][0] == {
        "box": list(defective.verdict.regions[0].box),
        "source": nearest.source,
        "distance": nearest.distance,
        "p_value": nearest.p_value,
        "file": "evidence/deep/a.png.jpg",
    }
    assert anomaly["counterfactual"] == {
        "score": inpainted.score,
        "p_value": inpainted.p_value,
        "decision": "good",
    }
    assert anomaly["inpainted"] == "inpainted/deep/a.png.jpg"
    with Image.open(out / anomaly["inpainted"]) as image:
        assert np.abs(np.asarray(image, np.float32) - inpainted.image).mean() < 3
    with Image.open(out / "evidence/deep/a.png.jpg") as image:
        # Three crops in a row over their captions and the sentence; the first has the spot, the others do not.
        bright = (np.asarray(image.convert("L"))[: image.height // 3] > 235).mean(0)
    third = len(bright) // 3
    assert bright[:third].max() > 0.2
    assert missing["evidence"] == plain["evidence"] == []
    assert missing["counterfactual"] is plain["counterfactual"] is None
    assert missing["overlay"] is None
    assert "inpainted" not in plain


def test_an_autoencoders_reconstruction_is_written_at_the_images_own_size(
    defective: Inspection, tmp_path: Path
) -> None:
    grey = np.full((1, 24, 32, 3), 77, np.uint8)
    written = write_images(tmp_path, "a.png", with_outputs(defective, reconstruction=grey), (0.0, 1.0))
    assert set(written) == {"overlay", "reconstruction", "evidence", "counterfactual"}
    with Image.open(tmp_path / written["reconstruction"]) as image:
        assert image.size == (80, 60)
        assert np.abs(np.asarray(image, np.float32) - 77).max() <= 1


def test_equal_names_get_numbers(tmp_path: Path) -> None:
    with ResultsFolder(tmp_path) as folder:
        names = [folder.unique(name) for name in ("a.png", "b/a.png", "a.png", "A.PNG", "a.png-2", "a.png")]
    assert names == ["a.png", "b/a.png", "a.png-2", "A.PNG-3", "a.png-2-2", "a.png-4"]


def test_each_verdict_is_there_at_once_and_stays_when_the_rest_fails(tmp_path: Path, defective: Inspection) -> None:
    out = tmp_path / "seen"

    def fail() -> None:
        with ResultsFolder(out) as folder:
            for number in (1, 2):
                folder.add(Result(defective))
                assert len((out / VERDICTS).read_text().splitlines()) == number
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert len((out / VERDICTS).read_text().splitlines()) == 2
    mark = mark_of(out)
    assert mark is not None
    assert (mark.kind, mark.complete, mark.files) == ("inspection", False, None)  # all in it is its own


def test_an_earlier_inspection_is_replaced_as_a_whole_and_only_if_asked(
    inspector: Inspector, defective: Inspection, tmp_path: Path
) -> None:
    out = tmp_path / "seen"
    writer = ImageWriter(out, inspector)
    with ResultsFolder(out) as folder:
        folder.add(writer.write(defective, folder.unique("old.png")))
    before = {file: file.read_bytes() for file in out.rglob("*") if file.is_file()}
    assert len(before) == 5  # mark, verdicts, overlay, evidence, inpainted
    with pytest.raises(BlemishError, match="--overwrite"):
        ResultsFolder(out)
    assert {file: file.read_bytes() for file in out.rglob("*") if file.is_file()} == before
    with ResultsFolder(out, overwrite=True) as folder:
        folder.add(writer.write(defective, folder.unique("new.png")))
    assert not list(out.rglob("old*"))
    (out / "overlays/mine.jpg").touch()
    with pytest.raises(BlemishError, match=r"holds overlays/mine\.jpg, which blemish did not write"):
        ResultsFolder(out, overwrite=True)


def test_a_folder_of_another_kind_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(BlemishError, match="is no folder"):
        ResultsFolder(tmp_path / "file")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / VERDICTS).write_text("journal\n")
    for overwrite in (False, True):
        with pytest.raises(BlemishError, match="was not written by blemish"):
            ResultsFolder(tmp_path / "mine", overwrite=overwrite)
    assert (tmp_path / "mine" / VERDICTS).read_text() == "journal\n"
    with kept(tmp_path / "w", "watch", [VERDICTS], resume=True):
        (tmp_path / "w" / VERDICTS).write_text("journal\n")
    with pytest.raises(BlemishError, match=r"of another kind \(watch, not inspection\)"):
        ResultsFolder(tmp_path / "w", overwrite=True)
    assert (tmp_path / "w" / VERDICTS).read_text() == "journal\n"

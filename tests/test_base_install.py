"""The line in an environment of its own: the base install, without torch, at most 250 MB, gives the same verdicts."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from blemish import Inspector
from tests.conftest import tile
from tests.support import write_image

REPOSITORY = Path(__file__).resolve().parents[1]
LIMIT = 250e6  # bytes


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of a fresh environment with nothing but `pip install blemish`."""
    home = tmp_path_factory.mktemp("line") / "venv"
    subprocess.run([sys.executable, "-m", "venv", home], check=True)
    program = home / "bin" / "python"
    constraints = ["-c", str(REPOSITORY / "constraints.txt")]
    install: list[str | Path] = [
        program,
        "-m",
        "pip",
        "install",
        "-q",
        "--disable-pip-version-check",
        *constraints,
        str(REPOSITORY),
    ]
    subprocess.run(install, check=True)
    return program


def test_inspect_without_torch(python: Path, run: Path, tmp_path: Path) -> None:
    absent = subprocess.run([python, "-c", "import torch"], capture_output=True, check=False)
    assert absent.returncode != 0
    image = write_image(tmp_path / "a.png", tile(901, (20, 30))[0])
    command: list[str | Path] = [
        python.parent / "blemish",
        "inspect",
        run / "bundle",
        image,
        "--json",
        "--out",
        tmp_path / "out",
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    there, here = json.loads(done.stdout), Inspector(run / "bundle").inspect(image)
    assert there["decision"] == here.decision == "anomaly"
    assert there["score"] == pytest.approx(here.score, rel=1e-5)
    assert [r["box"] for r in there["regions"]] == [list(r.box) for r in here.regions]
    assert (tmp_path / "out/overlays/a.png.jpg").is_file()


def test_a_classifier_inspects_without_torch(python: Path, classified: Path, labelled: Path) -> None:
    image = labelled / "bright/002.png"
    command: list[str | Path] = [python.parent / "blemish", "inspect", classified, image, "--json"]
    there = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    here = Inspector(classified).inspect(image)
    assert (there["decision"], there["defect"]) == (here.decision, here.defect) == ("anomaly", "bright")
    assert there["probability"] == pytest.approx(here.probability, rel=1e-4)


def test_train_without_torch_says_what_to_install(python: Path, product: Path, tmp_path: Path) -> None:
    command: list[str | Path] = [python.parent / "blemish", "train", product, "-o", tmp_path / "run"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert "blemish[learn]" in done.stderr


def test_the_base_install_is_small(python: Path) -> None:
    packages = next((python.parents[1] / "lib").glob("python*/site-packages"))
    files = [Path(folder) / name for folder, _, names in os.walk(packages) for name in names]
    # pip and setuptools came with the environment, compiled files are Python's own cache.
    ours = [f for f in files if f.suffix != ".pyc" and f.relative_to(packages).parts[0] not in ("pip", "setuptools")]
    assert sum(f.stat().st_size for f in ours) <= LIMIT

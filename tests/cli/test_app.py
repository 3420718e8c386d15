import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from blemish import Inspector, __version__
from blemish.images import load_image
from tests.conftest import tile
from tests.support import blemish, write_image

CUDA = torch.cuda.is_available()


def program(*arguments: object, code: int = 0) -> subprocess.CompletedProcess[str]:
    """Runs the program as a person does, and checks its exit code and that no stack trace comes out."""
    command = [sys.executable, "-m", "blemish", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == code, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return done


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_image(tmp_path / "in/good.png", tile(900)[0])
    write_image(tmp_path / "in/deep/bad.png", tile(901, (20, 30))[0])
    return tmp_path / "in"


def test_inspect_prints_a_line_for_each_image_and_a_summary(run: Path, folder: Path) -> None:
    lines = blemish("inspect", run / "bundle", folder).stdout.splitlines()
    assert lines[0].startswith("anomaly")
    assert "deep/bad.png" in lines[0]
    assert "(" in lines[0]  # a box
    assert lines[1].startswith("good")
    assert lines[2] == "2 images: 1 good, 1 anomaly."


def test_inspect_json_prints_one_verdict_per_line(run: Path, folder: Path) -> None:
    verdicts = [json.loads(line) for line in blemish("inspect", run, folder, "--json").stdout.splitlines()]
    assert [v["decision"] for v in verdicts] == ["anomaly", "good"]
    keys = {"path", "decision", "score", "threshold", "p_value", "size", "regions", "error", "probability", "defect"}
    assert set(verdicts[0]) == keys
    assert set(verdicts[0]["regions"][0]) == {"box", "area", "peak", "p_value"}
    assert verdicts[0]["size"] == [80, 60]


def test_inspect_out_writes_verdicts_and_overlays(run: Path, folder: Path, tmp_path: Path) -> None:
    blemish("inspect", run / "bundle", folder, folder / "good.png", "--out", tmp_path / "out")
    lines = (tmp_path / "out/verdicts.jsonl").read_text(encoding="utf-8").splitlines()
    drawn = [json.loads(line)["overlay"] for line in lines]
    # The same image is given twice, once through its folder; nothing is overwritten.
    assert drawn == ["overlays/deep/bad.png.jpg", "overlays/good.png.jpg", "overlays/good.png-2.jpg"]
    assert all((tmp_path / "out" / name).is_file() for name in drawn)


def test_exit_codes(run: Path, folder: Path, tmp_path: Path) -> None:
    program("inspect", run, folder, "--fail-on", "anomaly", code=1)
    program("inspect", run, folder / "good.png", "--fail-on", "anomaly", code=0)
    (folder / "broken.png").write_bytes(b"x")
    output = program("inspect", run, folder, code=3)
    assert "3 images: 1 good, 1 anomaly, 1 error." in output.stdout
    assert "broken.png" in output.stdout
    program("inspect", run, folder, "--fail-on", "anomaly", code=1)  # an anomaly takes precedence
    assert "no such bundle" in program("inspect", tmp_path / "none", folder, code=2).stderr
    assert "no-such-option" in program("inspect", run, folder, "--no-such-option", code=2).stderr


def test_inspect_takes_a_zip(run: Path, folder: Path, tmp_path: Path) -> None:
    output = blemish("bundle", run, "--zip", tmp_path / "b.zip")
    assert "21 good images" in output.stdout
    assert "intact" in output.stdout
    plain, zipped = (blemish("inspect", b, folder, "--json").stdout for b in (run, tmp_path / "b.zip"))
    assert plain == zipped
    card = json.loads(blemish("bundle", tmp_path / "b.zip", "--json").stdout)
    assert card["product"] == "tiles"


def test_a_damaged_bundle_is_refused(run: Path, folder: Path, tmp_path: Path) -> None:
    shutil.copytree(run / "bundle", tmp_path / "b")
    with (tmp_path / "b/model.onnx").open("ab") as file:
        file.write(b"x")
    assert "model.onnx is damaged" in blemish("inspect", tmp_path / "b", folder, code=2).stderr


def test_train_and_data(product: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    output = blemish("train", product, "-o", out, "--max-bank", 50, "--image-size", "64x96", "--overlays", 2)
    assert "AUROC" in output.stdout
    assert "At most 5.00% of good parts" in output.stdout
    assert len(list((out / "overlays").rglob("*.jpg"))) == 2
    settings = json.loads((out / "bundle/card.json").read_text(encoding="utf-8"))["settings"]
    assert settings["max_bank"] == 50
    assert settings["image_size"] == [64, 96]
    assert "--overwrite" in blemish("train", product, "-o", out, code=2).stderr
    audit = json.loads(blemish("data", product, "--json").stdout)
    assert audit["layout"] == "mvtec"
    assert sum(row["count"] for row in audit["rows"]) == 52
    assert "good" in blemish("data", product).stdout


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--false-alarms", "often"], "'often' is not a rate"),
        (["--false-alarms", "1%"], "cannot guarantee 1.00%"),
        (["--false-alarms", ""], "'' is not a rate"),
        (["--false-alarms", "0"], "lies between 0 % and 100 %"),
        (["--image-size", "10"], "at least 32 pixels"),
        (["--image-size", "1x2x3"], "not an image size"),
        (["--detector", "oracle"], "choose one of patchcore"),
        (["--backbone", "resnet1"], "no network called 'resnet1'"),
        (["--weights", "nowhere.safetensors"], "no such weights file"),
        (["--layout", "visa"], "visa"),
        pytest.param(["--device", "cuda"], "no CUDA card", marks=pytest.mark.skipif(CUDA, reason="there is a card")),
    ],
)
def test_train_refuses_in_a_sentence(product: Path, tmp_path: Path, arguments: list[str], sentence: str) -> None:
    error = blemish("train", product, "-o", tmp_path / "run", *arguments, code=2).stderr
    assert sentence in error.splitlines()[-1]
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_leaves_nothing(product: Path, tmp_path: Path, number: signal.Signals) -> None:
    # Processes that a shell starts in the background, and their children, ignore the signal.
    program = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
    program += "from blemish.cli.app import main; main()"
    command: list[str | Path] = [sys.executable, "-c", program, "train", product, "-o", tmp_path / "run"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if line.startswith("patches"):  # it learns
                assert (tmp_path / ".run.partial").is_dir()
                process.send_signal(number)
                break
        rest = process.stderr.read()
    assert process.returncode == 128 + number, rest
    assert "Traceback" not in rest
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_reported_in_a_sentence(run: Path, folder: Path) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full here")
    done = subprocess.run(
        [
            "sh",
            "-c",
            f"{sys.executable} -c 'from blemish.cli.app import main; main()' inspect {run} {folder} > /dev/full",
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert "Traceback" not in done.stderr
    assert "No space left" in done.stderr


def test_a_folder_without_images(run: Path, tmp_path: Path) -> None:
    assert "holds no images" in blemish("inspect", run, tmp_path, code=2).stderr


def test_version_and_help() -> None:
    assert program("--version").stdout.strip() == f"blemish {__version__}"
    help_text = blemish("--help").stdout
    for command in ("data", "train", "inspect", "explain", "bundle", "evaluate", "report", "compare", "demo"):
        assert command in help_text


def test_a_classifier_from_the_command_line(labelled: Path, folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "cam"
    options = ("--detector", "cam", "--unfreeze", 0, "--image-size", "64x96", "--false-alarms", "15%", "--folds", 3)
    output = blemish("train", labelled, "-o", out, *options, "--classes", "types", "--overlays", 3)
    assert "labelled, cam, every image out of fold" in output.stdout
    assert "balanced accuracy by fold" in output.stdout
    assert "mislabelled" in output.stdout
    assert (out / "out_of_fold.jsonl").is_file()
    card_text = blemish("bundle", out).stdout
    assert "defective images" in card_text
    lines = blemish("inspect", out, labelled / "bright", labelled / "dark/001.png").stdout
    assert "probability 0.9" in lines
    assert "  bright  " in lines
    refused = blemish("train", labelled, "-o", tmp_path / "x", "--detector", "cam", "--coreset", "0.1", code=2).stderr
    assert "--coreset is not an option of --detector cam" in refused
    assert "takes guarantee or class" in blemish("train", labelled, "-o", out, "--decide", "me", code=2).stderr
    assert "there is no recipe" in blemish("train", labelled, "-o", out, "--recipe", "soup", code=2).stderr
    unknown = blemish("train", labelled, "-o", tmp_path / "x", "--recipe", "case-study", code=2).stderr
    assert "vgg16" in unknown  # the weights cannot be downloaded here; the next test runs the recipe


def test_the_case_study_by_one_command(labelled: Path, tmp_path: Path) -> None:
    data, out = tmp_path / "few", tmp_path / "study"
    for kind, count in (("good", 10), ("bright", 5), ("dark", 5)):
        for i in range(count):
            write_image(data / kind / f"{i}.png", load_image(labelled / kind / f"{i:03}.png"))
    options = ("--recipe", "case-study", "--random-weights", "--epochs", 1, "--overlays", 2)
    blemish("train", data, "-o", out, *options)
    card = json.loads(blemish("bundle", out, "--json").stdout)
    assert card["backbone"]["name"] == "torchvision/vgg16"
    assert card["settings"]["head_weights"] == [1.0, 3.0]
    assert card["image_size"] == [224, 224]
    assert (card["decision"]["rule"], card["decision"]["boxes"]) == ("class", "one")
    metrics = json.loads((out / "metrics.json").read_text(encoding="utf-8"))
    assert metrics["counts"]["test_anomaly"] == 2  # 80/20, stratified by type
    assert metrics["counts"]["calibration"] == 0
    assert len(metrics["training"]) == 1


def test_the_second_study_by_one_command(labelled: Path, tmp_path: Path) -> None:
    """Two calls of the published program are two cycles; its map runs in onnxruntime, gradient cancelled."""
    out = tmp_path / "study"
    options = ("--image-size", 64, "--epochs", 1, "--cycles", 2, "--overlays", 2, "--false-alarms", "15%")
    blemish("train", labelled, "-o", out, "--recipe", "study", *options)
    card = json.loads(blemish("bundle", out, "--json").stdout)
    settings = card["settings"]
    assert (settings["model"], settings["layers"], settings["alternate"]) == ("study", ["encoder.21"], "last")
    metrics = json.loads((out / "metrics.json").read_text(encoding="utf-8"))
    assert [set(record) for record in metrics["training"]] == [{"loss", "reconstruction", "attention"}] * 2
    verdict = Inspector(out / "bundle").inspect(labelled / "bright/000.png")
    assert verdict.score is not None
    assert np.isfinite(verdict.score)
    assert verdict.decision in ("good", "anomaly")


def test_an_autoencoder_from_the_command_line(product: Path, folder: Path, tmp_path: Path) -> None:
    run, out = tmp_path / "run", tmp_path / "out"
    options = ("--detector", "attention", "--epochs", 2, "--model", "autoencoder", "--width", 4, "--latent", 4)
    attention_options = ("--attention-loss", "mean", "--layers", "encoder.11", "--map", "combined")
    blemish("train", product, "-o", run, *options, *attention_options, "--image-size", "32x48", "--overlays", 2)
    metrics = json.loads((run / "metrics.json").read_text(encoding="utf-8"))
    assert [{*record} for record in metrics["training"]] == [{"loss", "reconstruction", "attention"}] * 2
    validation = metrics["score"]["validation"]
    assert validation[f"{metrics['score']['share']:g}"] == max(validation.values())
    drawn = sorted(path.relative_to(run / "reconstruction") for path in (run / "reconstruction").rglob("*.jpg"))
    assert drawn == sorted(path.relative_to(run / "overlays") for path in (run / "overlays").rglob("*.jpg"))
    assert len(drawn) == 2
    card = json.loads(blemish("bundle", run, "--json").stdout)
    assert (card["detector"], card["settings"]["layers"]) == ("attention", ["encoder.11"])
    assert card["backbone"]["name"] == "autoencoder, from scratch"
    # Inference runs without torch.
    program = "import sys; sys.modules['torch'] = None; from blemish.cli.app import main; main()"
    command = [sys.executable, "-c", program, "inspect", run, folder, folder / "good.png", "--out", out]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    verdicts = [json.loads(line) for line in (out / "verdicts.jsonl").read_text(encoding="utf-8").splitlines()]
    names = ["reconstruction/deep/bad.png.jpg", "reconstruction/good.png.jpg", "reconstruction/good.png-2.jpg"]
    assert [verdict["reconstruction"] for verdict in verdicts] == names
    inspection = next(Inspector(run).look_many([folder / "good.png"]))
    assert inspection.reconstruction is not None
    assert inspection.reconstruction.shape == (32, 48, 3)
    assert inspection.reconstruction.dtype == np.uint8
    with Image.open(out / names[1]) as image:
        assert (image.format, image.size) == ("JPEG", (80, 60))
        expected = Image.fromarray(inspection.reconstruction).resize((80, 60), Image.Resampling.BICUBIC)
        assert np.abs(np.asarray(image, np.float32) - np.asarray(expected, np.float32)).mean() < 4  # JPEG is lossy
    assert (
        "--coreset is not an option"
        in blemish("train", product, "-o", tmp_path / "x", "--detector", "attention", "--coreset", "0.1", code=2).stderr
    )
    refused = blemish("train", product, "-o", tmp_path / "x", "--detector", "attention", "--layers", "21a", code=2)
    assert "there is no layer '21a'" in refused.stderr
    assert not (tmp_path / "x").exists()

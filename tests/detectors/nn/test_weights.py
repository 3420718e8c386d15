from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import nn
from torchvision import models

from blemish.detectors.nn.backbones import load_backbone
from blemish.detectors.nn.weights import describe, put
from blemish.types import BlemishError
from tests.support import shared_folder

METADATA = {"mean": "0.4,0.5,0.6", "std": "0.25", "licence": "CC BY 4.0", "source": "somebody's\n network"}


@pytest.fixture(scope="module")
def net() -> nn.Module:
    """A resnet18, whose parameters have the same names in timm and in torchvision."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        net: nn.Module = models.resnet18(weights=None)
    return net.eval()


Write = Callable[..., Path]


@pytest.fixture
def write(net: nn.Module, tmp_path: Path) -> Write:
    """Writes the network's file, float16, without the layers named."""

    def write(*without: str, metadata: dict[str, str] | None = None, **more: Any) -> Path:
        state = {k: v for k, v in net.state_dict().items() if not without or not k.startswith(without)}
        half = {k: v.half() if v.is_floating_point() else v for k, v in (state | more).items()}
        save_file(half, tmp_path / "w.safetensors", metadata)
        return tmp_path / "w.safetensors"

    return write


@pytest.mark.parametrize("name", ["resnet18", "torchvision/resnet18"])
def test_layers_that_the_cut_network_does_not_use_may_lack(name: str, net: nn.Module, write: Write) -> None:
    """The classifier, and the last stage, which is not tapped. The maps are those of the network itself."""
    backbone = load_backbone(name, image_size=(64, 64), weights=write("fc", "layer4"))
    assert {p.dtype for p in backbone.parameters()} == {torch.float32}
    image = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 255
    wanted: list[torch.Tensor] = []
    handles = [
        getattr(net, layer).register_forward_hook(lambda *a: wanted.append(a[2])) for layer in ("layer2", "layer3")
    ]
    with torch.inference_mode():
        net((image - backbone.mean) / backbone.std)
        found = backbone(image)
    for handle in handles:
        handle.remove()
    for theirs, ours in zip(wanted, found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0.02, atol=0.02)  # as of float16's rounding of the weights


@pytest.mark.parametrize("name", ["resnet18", "torchvision/resnet18"])
def test_layers_that_it_does_use_are_named(name: str, write: Write) -> None:
    file = write("fc", "layer1.0.conv1", "layer3.1.bn2", "layer2.1")
    message = r"w.safetensors: these weights do not fit resnet18 \(they lack layer1.0.conv1, layer2.1.conv1, "
    with pytest.raises(BlemishError, match=message + r"layer2.1.bn1 and 3 more\); give the file made for it"):
        load_backbone(name, image_size=(64, 64), weights=file)


def test_a_larger_networks_file_is_not_taken_for_a_part(write: Write) -> None:
    """All of resnet18's layers are in a resnet34, too."""
    with pytest.raises(BlemishError, match=r"they have layer1.2.conv1.weight, which it has not"):
        load_backbone("torchvision/resnet18", weights=write(**{"layer1.2.conv1.weight": torch.zeros(64, 64, 3, 3)}))


@pytest.mark.parametrize("name", ["resnet18", "torchvision/resnet18"])
def test_other_shapes_are_named(name: str, write: Write) -> None:
    file = write(**{"layer1.0.conv1.weight": torch.zeros(64, 64, 1, 1)})
    with pytest.raises(BlemishError, match=r"do not fit resnet18 \(.*layer1.0.conv1.weight"):
        load_backbone(name, weights=file)


@pytest.mark.parametrize("name", ["resnet18", "torchvision/resnet18"])
def test_metadata_say_mean_std_licence_and_source(name: str, write: Write) -> None:
    file = write("fc", metadata=METADATA)
    backbone = load_backbone(name, image_size=(64, 64), weights=file)
    torch.testing.assert_close(backbone.mean.flatten(), torch.tensor([0.4, 0.5, 0.6]) * 255)
    torch.testing.assert_close(backbone.std.flatten(), torch.full((3,), 0.25 * 255))
    assert (backbone.licence, backbone.source) == ("CC BY 4.0", "w.safetensors (somebody's network)")
    named = load_backbone(f"{name}?mean=0.1", image_size=(64, 64), weights=file)
    torch.testing.assert_close(named.mean.flatten(), torch.full((3,), 25.5))
    torch.testing.assert_close(named.std.flatten(), torch.full((3,), 0.25 * 255))
    silent = load_backbone(name, image_size=(64, 64), weights=write("fc"))
    torch.testing.assert_close(silent.mean.flatten(), torch.tensor([0.485, 0.456, 0.406]) * 255)
    assert (silent.licence, silent.source) == ("see w.safetensors", "w.safetensors")


@pytest.mark.parametrize(
    ("stated", "wanted"),
    [("0.5", (0.5,) * 3), ("[0.1, 0.2, 0.3]", (0.1, 0.2, 0.3)), ("(0,0,0)", (0.0,) * 3), ("1e-3", (0.001,) * 3)],
)
def test_one_number_or_three(stated: str, wanted: tuple[float, ...], write: Write) -> None:
    assert describe(write(metadata={"mean": stated})).normalisation("mean") == wanted
    assert describe(write(metadata={"mean": stated})).normalisation("std") is None


@pytest.mark.parametrize(
    ("what", "stated"),
    [
        ("mean", "grey"),
        ("mean", "0.1,0.2"),
        ("mean", ""),
        ("mean", "123.68,116.779,103.939"),
        ("mean", "nan"),
        ("std", "0"),
        ("std", "-0.5"),
        ("std", "57.4"),
        ("std", "inf"),
        ("std", "0.5,0.5,x"),
    ],
)
def test_metadata_that_are_no_colour_are_refused(what: str, stated: str, write: Write) -> None:
    file = write(metadata={what: stated})
    with pytest.raises(BlemishError, match=rf"w.safetensors: its metadata say {what} = '.*not one number or three"):
        load_backbone("torchvision/resnet18", image_size=(64, 64), weights=file)
    given = load_backbone(f"torchvision/resnet18?{what}=0.5", image_size=(64, 64), weights=file)  # the remedy
    torch.testing.assert_close(getattr(given, what).flatten(), torch.full((3,), 127.5))


def test_a_file_for_the_bundled_backbone(tmp_path: Path) -> None:
    keys = [
        key.removeprefix("net.model.") for key in load_backbone("bundled").state_dict() if key.startswith("net.model.")
    ]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        whole = timm.create_model("mobilenetv2_100", pad_type="same").state_dict()
    save_file({key: whole[key] for key in keys}, tmp_path / "w.safetensors", METADATA)
    backbone = load_backbone("bundled", weights=tmp_path / "w.safetensors")
    assert torch.equal(backbone.state_dict()["net.model.conv_stem.weight"], whole["conv_stem.weight"])
    assert backbone.licence == "CC BY 4.0"
    torch.testing.assert_close(backbone.std.flatten(), torch.full((3,), 0.25 * 255))


def test_what_is_not_a_safetensors_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "w.safetensors").write_bytes(b"\x80\x02cposix\nsystem\n")
    with pytest.raises(BlemishError, match=r"w.safetensors: not a readable .safetensors file"):
        load_backbone("resnet18", weights=tmp_path / "w.safetensors")


def test_a_network_on_the_meta_device_is_filled() -> None:
    with torch.device("meta"):
        net = nn.BatchNorm1d(2)
    put(net, {name: torch.ones(2) for name in ("weight", "bias", "running_mean", "running_var")}, net.state_dict())
    assert not any(v.is_meta for v in net.state_dict().values())  # also the count that old files lack
    with pytest.raises(RuntimeError, match="they lack running_mean, running_var"):
        put(net, {"weight": torch.ones(2), "bias": torch.ones(2)}, net.state_dict())


@pytest.mark.real
def test_vgg16_without_its_dense_layers() -> None:
    file = shared_folder("weights") / "vgg16_imagenet_conv.safetensors"
    backbone = load_backbone("torchvision/vgg16", layers=("features.29",), image_size=(224, 224), weights=file)
    torch.testing.assert_close(backbone.mean.flatten(), torch.tensor([123.68, 116.779, 103.939]), atol=0.001, rtol=0)
    torch.testing.assert_close(backbone.std.flatten(), torch.ones(3), atol=0.001, rtol=0)
    assert sum(p.numel() for p in backbone.parameters()) == 14_714_688  # the 13 convolutions
    assert backbone.licence == "CC BY 4.0"

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from blemish.detectors.nn.backbones import load_backbone
from blemish.types import BlemishError
from tests.support import shared_folder


def features(name: str, **options: object) -> list[torch.Tensor]:
    backbone = load_backbone(name, image_size=(64, 96), **options)  # type: ignore[arg-type]
    generator = torch.Generator().manual_seed(0)
    with torch.inference_mode():
        return list(backbone(torch.rand(1, 3, 64, 96, generator=generator) * 255))


@pytest.mark.parametrize(
    ("name", "strides", "channels"),
    [
        ("bundled", (8, 16), (32, 96)),
        ("resnet18", (8, 16), (128, 256)),
        ("torchvision/resnet18", (8, 16), (128, 256)),
        ("torchvision/vgg16", (8, 16), (512, 512)),
        ("torchvision/mobilenet_v2", (8, 16), (32, 96)),
        ("vit_tiny_patch16_224", (16,), (192,)),  # tokens as a map
        ("swin_tiny_patch4_window7_224", (8, 16), (192, 384)),  # channels last inside
    ],
)
def test_outputs_have_the_taps_shapes(name: str, strides: tuple[int, ...], channels: tuple[int, ...]) -> None:
    backbone = load_backbone(name, image_size=(64, 96), random=True)
    assert tuple(tap.stride for tap in backbone.taps) == strides
    assert tuple(tap.channels for tap in backbone.taps) == channels
    for tap, found in zip(backbone.taps, backbone(torch.zeros(1, 3, 64, 96)), strict=True):
        assert found.shape == (1, tap.channels, 64 // tap.stride, 96 // tap.stride)
    assert backbone.licence
    assert not any(p.requires_grad for p in backbone.parameters())


def test_torchvision_tokens_become_a_map_in_reading_order() -> None:
    backbone = load_backbone("torchvision/vit_b_32", image_size=(224, 224), random=True)
    assert [(tap.stride, tap.channels) for tap in backbone.taps] == [(32, 768)]
    image = torch.zeros(1, 3, 224, 224)
    with torch.inference_mode():
        still = backbone(image)[0]
        image[:, :, 32:64, 160:192] = 255  # row 1, column 5 of the 7 x 7 grid
        change = (backbone(image)[0] - still).abs().sum(1)[0]
    assert divmod(int(change.argmax()), 7) == (1, 5)


def test_layers_can_be_chosen() -> None:
    assert [t.stride for t in load_backbone("resnet18", layers=("1", "2"), random=True).taps] == [4, 8]
    assert [t.layer for t in load_backbone("torchvision/resnet18", layers=("layer1",), random=True).taps] == ["layer1"]
    assert [t.channels for t in load_backbone("bundled", layers=("3",)).taps] == [96]
    deep, last = (load_backbone("vit_tiny_patch16_224", layers=(n,), random=True).taps[0] for n in ("4", "-1"))
    assert deep.stride == last.stride == 16


def test_the_network_is_given_normalised_pixels() -> None:
    backbone = load_backbone("resnet18", random=True)
    white = torch.full((1, 3, 32, 32), 255.0)
    given: list[torch.Tensor] = []
    backbone.net.register_forward_pre_hook(lambda _, inputs: given.append(inputs[0]))
    backbone(white)
    expected = (1 - torch.tensor([0.485, 0.456, 0.406])) / torch.tensor([0.229, 0.224, 0.225])
    torch.testing.assert_close(given[0][0, :, 0, 0], expected)


def test_options_in_the_name() -> None:
    backbone = load_backbone("mobilenetv2_100?pad_type=same&mean=0.498&std=0.5,0.25,0.125", random=True)
    torch.testing.assert_close(backbone.mean.flatten(), torch.full((3,), 0.498 * 255))
    torch.testing.assert_close(backbone.std.flatten(), torch.tensor([0.5, 0.25, 0.125]) * 255)
    assert any(type(m).__name__ == "Conv2dSame" for m in backbone.net.modules())


def test_random_weights_follow_the_seed() -> None:
    first, again, other = (features("resnet18", random=True, seed=s)[0] for s in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert not torch.allclose(features("bundled")[0], features("bundled", random=True)[0])


@pytest.mark.parametrize("name", ["resnet18", "torchvision/resnet18"])
def test_local_weights_are_used(name: str, tmp_path: Path) -> None:
    import timm
    from torchvision import models

    plain = name.removeprefix("torchvision/")
    net = models.get_model(plain, num_classes=7) if "/" in name else timm.create_model(plain, num_classes=7)
    save_file(net.state_dict(), tmp_path / "w.safetensors")
    backbone = load_backbone(name, image_size=(64, 96), weights=tmp_path / "w.safetensors")
    loaded = {key.rpartition("net.")[2]: value for key, value in backbone.state_dict().items()}
    same = [torch.equal(v, loaded[k]) for k, v in net.state_dict().items() if k in loaded and "layer1" in k]
    same += [torch.equal(v, loaded[f"model.{k}"]) for k, v in net.state_dict().items() if f"model.{k}" in loaded]
    assert same
    assert all(same)
    assert "w.safetensors" in backbone.source


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("resnet19", {}, r"no network called 'resnet19' \(near: .*resnet"),
        ("torchvision/resnet19", {}, "no network called 'resnet19'"),
        ("resnet18", {"layers": ("9",), "random": True}, "resnet18 has no layers 9"),
        ("torchvision/resnet18", {"layers": ("layer9",), "random": True}, "no feature map at 'layer9'"),
        ("bundled", {"layers": ("4",)}, "the layers 0 to 3, not 4"),
        ("torchvision/vit_b_16", {"random": True}, "does not take 256x256"),
        ("resnet18", {"weights": Path("missing.safetensors")}, "no such weights file"),
        ("resnet18", {"weights": Path("weights.pth")}, "no pickle is ever loaded"),
        ("resnet18?mean=1,2", {"random": True}, "one number or three"),
        ("resnet18?std=grey", {"random": True}, "one number or three, not 'grey'"),
    ],
)
def test_refusals(name: str, options: dict[str, object], message: str) -> None:
    with pytest.raises(BlemishError, match=message):
        load_backbone(name, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["resnet18", "torchvision/resnet18"])
def test_offline_names_the_remedy(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))

    def unreachable(*_: object, **__: object) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr("torch.hub.download_url_to_file", unreachable)
    monkeypatch.setattr("timm.models._hub.download_cached_file", unreachable)
    with pytest.raises(BlemishError, match=r"resnet18: its pretrained weights could not be downloaded .*--weights"):
        load_backbone(name)


def test_weights_of_another_network_are_refused(tmp_path: Path) -> None:
    save_file({"fc.bias": torch.zeros(3)}, tmp_path / "w.safetensors")
    for name in ("resnet18", "torchvision/resnet18", "bundled"):
        with pytest.raises(BlemishError, match="do not fit"):
            load_backbone(name, weights=tmp_path / "w.safetensors")


def test_a_network_without_pretrained_weights_is_refused() -> None:
    with pytest.raises(BlemishError, match="No pretrained weights exist"):
        load_backbone(untrained())


def untrained() -> str:
    import timm

    trained = {name.partition(".")[0] for name in timm.list_models(pretrained=True)}
    return next(str(n) for n in timm.list_models("resnet*") if n not in trained)


@pytest.mark.real
def test_the_imagenet_teacher_loads(tmp_path: Path) -> None:
    file = shared_folder("weights") / "mobilenetv2_100_tf.safetensors"
    backbone = load_backbone("mobilenetv2_100?pad_type=same&mean=0.498&std=0.5", weights=file)
    assert [(t.channels, t.stride) for t in backbone.taps] == [(32, 8), (96, 16)]
    from safetensors.torch import load_file

    stem = load_file(file)["conv_stem.weight"]
    assert any(torch.equal(p, stem) for p in backbone.parameters())

"""The autoencoders: shapes, independence of the images in a batch, and errors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.distributions import Normal, kl_divergence
from torchvision import models

from blemish.detectors.attention.models import MODELS, Autoencoder, build
from blemish.types import BlemishError
from tests.detectors.support import randomise_norms

SMALL: dict[str, Any] = {"width": 4, "latent": 5}


def random_images(n: int, size: tuple[int, int], seed: int = 0) -> Tensor:
    return torch.randn(n, 3, *size, generator=torch.Generator().manual_seed(seed))


def perturbed(net: Autoencoder, seed: int = 3) -> Autoencoder:
    """As if trained: no norm is the identity."""
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in net.parameters():
            spread = parameter.std(correction=0).clamp(min=0.3)
            parameter.add_(0.1 * spread * torch.randn(parameter.shape, generator=random))
    return net


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A resnet18 whose batch norms are not the identity, as a file."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        net = models.resnet18(weights=None)
        randomise_norms(net)
    file = tmp_path_factory.mktemp("weights") / "resnet18.safetensors"
    save_file(net.state_dict(), file)
    return file


def run(net: Autoencoder, images: Tensor, layers: tuple[int, ...] = ()) -> tuple[Tensor, Tensor, list[Tensor]]:
    """Code, reconstructions and the layers' outputs."""
    code, outputs, skipped = net.encode(images, layers)
    return code, net.decode(net.latent(code), skipped), outputs


@pytest.mark.parametrize(
    ("name", "code", "channels"),
    [
        ("unet", (2, 32 * 6 * 10), 32),
        ("autoencoder", (2, 5), 32),
        ("vae", (2, 10), 32),
        ("resnet", (2, 5), 512),
        ("resnet-vae", (2, 10), 512),
        ("study", (2, 32 * 3 * 5), 32),
    ],
)
def test_images_that_are_not_square(name: str, code: tuple[int, int], channels: int) -> None:
    net = build(name, (96, 160), **SMALL)
    last = len(net.encoder) - 1
    with torch.no_grad():
        found, reconstruction, (features,) = run(net, random_images(2, (96, 160)), (last,))
    assert found.shape == code
    assert reconstruction.shape == (2, 3, 96, 160)
    assert features.shape == (2, channels, *((6, 10) if name in ("unet", "autoencoder", "vae") else (3, 5)))
    assert net.latent(found).shape == (2, code[1] // (2 if name.endswith("vae") else 1))
    assert 0 < reconstruction.min() < reconstruction.max() < 1
    assert reconstruction.std() > (5e-4 if name == "study" else 0.01)  # an image, no constant


@pytest.mark.parametrize("name", [*MODELS, "pretrained"])
def test_an_images_result_does_not_depend_on_its_batch_even_in_training(name: str, weights: Path) -> None:
    options: dict[str, Any] = {"pretrained": True, "weights": weights} if name == "pretrained" else {}
    net = perturbed(build("resnet" if options else name, (64, 64), **SMALL, **options)).train()
    before = {key: value.clone() for key, value in net.state_dict().items()}
    images = random_images(3, (64, 64)) * torch.tensor([1.0, 0.2, 3.0]).view(3, 1, 1, 1)
    with torch.no_grad():
        together = run(net, images)[:2]
        alone = [run(net, image[None])[:2] for image in images]
    for index, output in enumerate(together):
        torch.testing.assert_close(output, torch.cat([one[index] for one in alone]), rtol=1e-4, atol=1e-4)
    assert (together[1][0] - together[1][2]).abs().max() > 1e-3  # the images' results differ
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())


def test_pretrained_encoders_equal_torchvisions_network(weights: Path) -> None:
    from safetensors.torch import load_file

    wanted = models.resnet18(weights=None).eval()
    wanted.load_state_dict(load_file(weights))
    net = build("resnet", (64, 96), **SMALL, pretrained=True, weights=weights)  # in training mode
    images = random_images(2, (64, 96))
    theirs: list[Tensor] = []
    for layer in (wanted.relu, wanted.layer2, wanted.layer4):
        layer.register_forward_hook(lambda _module, _inputs, output: theirs.append(output.detach().clone()))
    with torch.no_grad():
        wanted(images)
        _, outputs, _ = net.encode(images, (2, 7, 11))
    for ours, output in zip(outputs, theirs[:3], strict=True):
        torch.testing.assert_close(ours, output, rtol=1e-4, atol=1e-4)


def test_later_layers_do_not_overwrite_outputs() -> None:
    for name in MODELS:
        net = build(name, (64, 64), **SMALL)
        every = tuple(range(len(net.encoder)))
        images = random_images(2, (64, 64))
        with torch.no_grad():
            outputs = net.encode(images, every)[1]
            features = images
            for layer, found in zip(net.encoder, outputs, strict=True):
                features = layer(features.clone())
                assert torch.equal(features, found)


@pytest.mark.parametrize("name", MODELS)
def test_a_layers_output_and_its_tail_give_the_code(name: str) -> None:
    net = build(name, (64, 96), **SMALL)
    with torch.no_grad():
        code, outputs, _ = net.encode(random_images(2, (64, 96)), (0, 7))
        for layer, features in zip((0, 7), outputs, strict=True):
            torch.testing.assert_close(net.tail(layer)(features), net.latent(code))
    assert net.latent(code).shape[1] == (code.shape[1] // 2 if name.endswith("vae") else code.shape[1])


def test_the_unets_decoder_depends_on_the_code_and_every_skip() -> None:
    net = perturbed(build("unet", (32, 48), width=4))
    assert [type(net.encoder[layer]) for layer in net.skips] == [nn.ReLU] * 4
    assert isinstance(net.encoder[21], nn.Conv2d)
    with torch.no_grad():
        code, _, skipped = net.encode(random_images(2, (32, 48)))
        assert [tuple(s.shape[1:]) for s in skipped] == [(32, 4, 6), (16, 8, 12), (8, 16, 24), (4, 32, 48)]
        whole = net.decode(code, skipped)
        for level in range(4):
            without = [s if i != level else torch.zeros_like(s) for i, s in enumerate(skipped)]
            assert (net.decode(code, without) - whole).abs().max() > 1e-3
        assert (net.decode(torch.zeros_like(code), skipped) - whole).abs().max() > 1e-3
        for name in ("autoencoder", "vae", "resnet"):
            other = build(name, (32, 64), **SMALL)
            assert other.encode(random_images(1, (32, 64)))[2] == []


def test_the_divergence_is_the_gaussians() -> None:
    net = build("vae", (32, 32), width=4, latent=7)
    random = torch.Generator().manual_seed(1)
    code = 2 * torch.randn(4, 14, generator=random)
    code[3] = 0  # the unit Gaussian itself
    noise = torch.randn(4, 7, generator=random)
    latent, divergence = net.sampled(code, noise)
    mean, deviation = code[:, :7], (code[:, 7:] / 2).exp()
    wanted = kl_divergence(Normal(mean, deviation), Normal(torch.zeros(7), torch.ones(7))).sum(1)
    torch.testing.assert_close(divergence, wanted, rtol=1e-5, atol=1e-6)
    assert divergence[3] == 0
    torch.testing.assert_close(latent, mean + deviation * noise)
    assert torch.equal(net.latent(code), mean)
    extreme = torch.cat([torch.zeros(1, 7), torch.tensor([[500.0, -500.0, 0, 0, 0, 0, 0]])], 1)
    assert net.sampled(extreme, noise[:1])[1].isfinite().all()


def test_a_plain_code_has_no_divergence() -> None:
    net = build("autoencoder", (32, 32), **SMALL)
    code = random_images(2, (1, 5))[:, 0, 0]
    latent, divergence = net.sampled(code, torch.ones(2, 5))
    assert torch.equal(latent, code)
    assert divergence.tolist() == [0, 0]


def test_the_studys_network() -> None:
    """The shapes of the public code at 256 x 256, written down from it: 2,048 numbers, of which a dense layer makes 64,
    8 x 8 cells for the decoder."""
    net = build("study", (256, 256))
    assert isinstance(net.encoder[21], nn.Conv2d)
    assert (net.encoder[21].in_channels, net.encoder[21].out_channels, net.encoder[21].kernel_size) == (128, 64, (3, 3))
    with torch.no_grad():
        code, outputs, _ = net.encode(random_images(1, (256, 256)), range(2, 27, 3))
        sides = [(output.shape[1], output.shape[2]) for output in outputs]
        assert sides == [(32, 128), (32, 64), (32, 32), (32, 32), (64, 16), (64, 16), (128, 8), (64, 8), (32, 8)]
        assert code.shape == (1, 2048)
        assert net.start(code).shape == (1, 1, 8, 8)
        assert net.decode(code, []).shape == (1, 3, 256, 256)
    dense = next(layer for layer in net.start.modules() if isinstance(layer, nn.Linear))
    assert (dense.in_features, dense.out_features) == (2048, 64)
    convolutions = [layer for layer in net.decoder.modules() if isinstance(layer, nn.Conv2d)]
    assert [layer.out_channels for layer in convolutions] == [32, 64, 128, 64, 64, 32, 32, 32, 32, 3]


def test_layers_have_names() -> None:
    net = build("unet", (32, 32), width=4)
    assert net.index("encoder.21") == net.index("21") == 21
    assert net.index("encoder.27") == 27
    for name in ("encoder.28", "encoder.-1", "decoder.1", "", "encoder.", "encoder.x", "21.0"):
        with pytest.raises(BlemishError, match=rf"no layer '{name}'.* encoder\.0 \(Conv2d\) to encoder\.27"):
            net.index(name)


@pytest.mark.parametrize(
    ("name", "size", "options", "message"),
    [
        ("gan", (64, 64), {}, "no model 'gan'; take one of unet, autoencoder, vae, resnet, resnet-vae, study"),
        ("unet", (64, 72), {}, "unet halves the image until 16 pixels are one: 64x72 does not fit"),
        ("resnet", (64, 48), {}, "resnet halves the image until 32 pixels are one: 64x48"),
        ("study", (256, 240), {}, "study halves the image until 32 pixels are one: 256x240"),
        ("study", (32, 64), {}, "study needs images of at least 64x64, not 32x64"),
        ("unet", (64, 64), {"pretrained": True}, "only --model resnet has an encoder with ImageNet weights, unet has"),
        ("resnet", (64, 64), {"pretrained": True, "weights": Path("no.safetensors")}, "no such weights file"),
    ],
)
def test_refusals(name: str, size: tuple[int, int], options: dict[str, Any], message: str) -> None:
    with pytest.raises(BlemishError, match=message):
        build(name, size, **options)


@pytest.mark.parametrize("name", MODELS)
def test_the_seed_decides(name: str) -> None:
    torch.manual_seed(9)
    expected = torch.rand(1)
    torch.manual_seed(9)
    first, again, other = (build(name, (64, 64), **SMALL, seed=seed).state_dict() for seed in (1, 1, 2))
    assert torch.equal(torch.rand(1), expected)  # the global random state is not used
    assert all(torch.equal(value, again[key]) for key, value in first.items())
    assert any(not torch.equal(value, other[key]) for key, value in first.items())

"""Losses and residual maps by hand, against torchmetrics, and against SSIM written out pixel by pixel in float64."""

from __future__ import annotations

import logging
import math
import warnings
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor
from torch.export import Dim
from torchmetrics.functional.image import structural_similarity_index_measure

from blemish.detectors.attention.losses import LOSSES, RESIDUALS, Residual, loss, parse
from blemish.inference.inspector import open_session
from blemish.types import BlemishError


def flat(value: float, n: int = 1) -> Tensor:
    return torch.full((n, 3, 12, 14), value)


def noise(seed: int, n: int = 2, height: int = 24, width: int = 19) -> Tensor:
    return torch.rand(n, 3, height, width, generator=torch.Generator().manual_seed(seed))


def textured(seed: int) -> Tensor:
    """Smooth images, whose local variance is above and below the constants of SSIM."""
    smooth = torch.nn.functional.avg_pool2d(noise(seed, 2, 40, 35), 9, 1)
    return smooth * torch.linspace(0, 1, smooth.shape[-1])


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("mse", ((1.0, "mse"),)),
        ("mse+ssim", ((1.0, "mse"), (1.0, "ssim"))),
        (" 0.8*mse + 0.2 * ssim ", ((0.8, "mse"), (0.2, "ssim"))),
        ("1e1*l1+2e-1*bce", ((10.0, "l1"), (0.2, "bce"))),
    ],
)
def test_a_sum_of_losses_is_read(text: str, wanted: tuple[tuple[float, str], ...]) -> None:
    assert parse(text) == wanted


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "has a term ''; terms are mse, l1, bce, ssim"),
        ("mse+", "has a term ''"),
        ("0.5*", "has a term ''"),
        ("rmse", "has a term 'rmse'"),
        ("mse-ssim", "has a term 'mse-ssim'"),
        ("mse+0.5*mse", "names mse twice"),
        ("0*mse", "weighs mse with '0'; a weight is a number above 0"),
        ("-1*l1", "weighs l1 with '-1'"),
        ("nan*l1", "weighs l1 with 'nan'"),
        ("inf*l1", "weighs l1 with 'inf'"),
        ("*l1", "weighs l1 with ''"),
        ("a*l1", "weighs l1 with 'a'"),
        ("2*3*l1", "weighs l1 with '2.3'"),
    ],
)
def test_an_invalid_sum_of_losses_is_refused(text: str, message: str) -> None:
    with pytest.raises(BlemishError, match=message):
        parse(text)


@pytest.mark.parametrize(("name", "wanted"), [("mse", 0.25), ("l1", 0.5), ("bce", math.log(2))])
def test_black_against_grey_by_hand(name: str, wanted: float) -> None:
    np.testing.assert_allclose(loss(parse(name), flat(0.5), flat(0.0)), [wanted], rtol=1e-6)


def test_ssim_of_flat_images_is_their_luminance() -> None:
    """Wang et al. 2004, Eq. 6: (2 a b + C1) / (a^2 + b^2 + C1), as there is neither contrast nor structure."""
    wanted = 1 - (2 * 0.3 * 0.5 + 1e-4) / (0.3**2 + 0.5**2 + 1e-4)
    np.testing.assert_allclose(loss(parse("ssim"), flat(0.3), flat(0.5)), [wanted], rtol=1e-3)
    np.testing.assert_allclose(residual("ssim", flat(0.3), flat(0.5)), np.full((1, 12, 14), wanted), rtol=1e-4)


def test_each_image_has_its_own_weighted_sum() -> None:
    images = torch.cat([flat(0.0), flat(1.0), flat(0.5)])
    found = loss(parse("0.8*mse+0.5*l1"), flat(0.5, 3), images)
    np.testing.assert_allclose(found, [0.8 * 0.25 + 0.5 * 0.5] * 2 + [0], rtol=1e-6)


@pytest.mark.parametrize("name", LOSSES)
def test_losses_are_least_for_equal_images(name: str) -> None:
    images = noise(0)
    best = loss(parse(name), images, images)
    assert (best < loss(parse(name), (images + 0.05).clamp(max=1), images)).all()
    if name == "bce":  # its least value is the image's own entropy
        p = images.double().numpy()
        np.testing.assert_allclose(best, -(p * np.log(p) + (1 - p) * np.log(1 - p)).mean((1, 2, 3)), rtol=1e-5)
    else:
        np.testing.assert_allclose(best, 0, atol=1e-6)


def test_cross_entropy_and_its_gradient_are_finite_at_the_ends() -> None:
    logits = torch.tensor([-200.0, 200.0, -200.0, 200.0]).view(4, 1, 1, 1).expand(4, 3, 8, 8).clone().requires_grad_()
    reconstruction = logits.sigmoid()
    assert set(reconstruction.flatten().tolist()) == {0, 1}
    found = loss(parse("bce"), reconstruction, torch.tensor([0.0, 1.0, 1.0, 0.0]).view(4, 1, 1, 1).expand(4, 3, 8, 8))
    np.testing.assert_array_equal(found.detach(), [0, 0, 100, 100])
    found.sum().backward()  # type: ignore[no-untyped-call]
    assert logits.grad is not None
    assert logits.grad.isfinite().all()


def test_descending_ssim_leads_from_noise_to_the_image() -> None:
    wanted = textured(1)
    logits = torch.zeros_like(wanted).normal_(generator=torch.Generator().manual_seed(2)).requires_grad_()
    adam = torch.optim.Adam([logits], 0.1)
    first = 0.0
    for _ in range(60):
        off = loss(parse("ssim"), logits.sigmoid(), wanted).mean()
        first = first or float(off.detach())
        adam.zero_grad()
        off.backward()  # type: ignore[no-untyped-call]
        adam.step()
    assert float(off.detach()) < first / 5


def residual(kind: str, reconstruction: Tensor, images: Tensor) -> Tensor:
    found: Tensor = Residual(kind, (images.shape[2], images.shape[3]))(reconstruction, images)
    return found


def slow_ssim_map(x: npt.NDArray[np.float64], y: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Wang et al. 2004, Eq. 13 to 16, one window at a time: `(C, H, W)` each -> `(H, W)` of 1 - SSIM."""
    offsets = np.arange(-5, 6)
    weights = np.exp(-(offsets[:, None] ** 2 + offsets**2) / (2 * 1.5**2))
    weights /= weights.sum()
    x, y = (np.pad(values, ((0, 0), (5, 5), (5, 5)), mode="reflect") for values in (x, y))
    out = np.zeros((x.shape[1] - 10, x.shape[2] - 10))
    for row in range(out.shape[0]):
        for column in range(out.shape[1]):
            for channel in range(len(x)):
                a = x[channel, row : row + 11, column : column + 11]
                b = y[channel, row : row + 11, column : column + 11]
                ma, mb = (weights * a).sum(), (weights * b).sum()
                va, vb = (weights * (a - ma) ** 2).sum(), (weights * (b - mb) ** 2).sum()
                cov = (weights * (a - ma) * (b - mb)).sum()
                alike = (2 * ma * mb + 1e-4) * (2 * cov + 9e-4) / ((ma**2 + mb**2 + 1e-4) * (va + vb + 9e-4))
                out[row, column] += (1 - alike) / len(x)
    return out


PAIRS = {
    "noise": (noise(3), noise(4)),
    "smooth": (textured(5), textured(6)),
    "near": (textured(5), (textured(5) + 0.01 * noise(7, 2, 32, 27)).clamp(max=1)),
    "inverse": (textured(5), 1 - textured(5)),  # SSIM is below 0 where structure is inverted
}


@pytest.mark.parametrize("pair", PAIRS)
def test_the_map_equals_ssim_written_out(pair: str) -> None:
    x, y = PAIRS[pair]
    wanted = [slow_ssim_map(*both) for both in zip(x.double().numpy(), y.double().numpy(), strict=True)]
    found = residual("ssim", x, y)
    assert found.dtype == torch.float32
    np.testing.assert_allclose(found, wanted, rtol=1e-3, atol=2e-5)


@pytest.mark.parametrize("pair", PAIRS)
def test_map_and_loss_equal_torchmetrics(pair: str) -> None:
    x, y = PAIRS[pair]
    mean, full = structural_similarity_index_measure(x, y, data_range=1.0, reduction="none", return_full_image=True)
    found = residual("ssim", x, y)
    np.testing.assert_allclose(found, 1 - full.mean(1), rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(found.mean((1, 2)), 1 - mean, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(loss(parse("ssim"), x, y), 1 - mean, rtol=1e-3, atol=1e-4)


def test_absolute_difference_by_hand() -> None:
    images, reconstruction = flat(0.5), flat(0.5)
    reconstruction[0, :, 2, 3] = torch.tensor([0.75, 0.0, 0.5])
    wanted = np.zeros((1, 12, 14))
    wanted[0, 2, 3] = 0.25
    np.testing.assert_allclose(residual("l1", reconstruction, images), wanted, atol=1e-7)


@pytest.mark.parametrize("kind", RESIDUALS)
@pytest.mark.parametrize("images", [flat(0.0), flat(1.0), noise(8), textured(9)])
def test_equal_images_have_residual_zero(kind: str, images: Tensor) -> None:
    assert residual(kind, images, images).abs().max() == 0


@pytest.mark.parametrize("kind", RESIDUALS)
def test_maps_are_never_negative_and_symmetric(kind: str) -> None:
    for x, y in [*PAIRS.values(), (flat(0.0), flat(1.0)), (flat(1.0), flat(1 - 1e-6))]:
        found = residual(kind, x, y)
        assert found.isfinite().all()
        assert found.min() >= 0
        assert found.max() <= {"l1": 1, "ssim": 2}[kind]
        np.testing.assert_allclose(found, residual(kind, y, x), rtol=1e-5, atol=1e-6)


def test_ssim_reaches_as_far_as_its_window() -> None:
    images, reconstruction = flat(0.5), flat(0.5)
    reconstruction[0, :, 5, 7] = 1
    found = residual("ssim", reconstruction, images)[0]
    rows, columns = found.nonzero().T
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (0, 10, 2, 12)
    assert found.argmax() == 5 * 14 + 7


@pytest.mark.parametrize("kind", RESIDUALS)
def test_the_exported_map_is_the_same_for_any_number_of_images(kind: str, tmp_path: Path) -> None:
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    logging.getLogger("onnxscript").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecation warnings inside the exporter
        program = torch.onnx.export(
            Residual(kind, (24, 19)).eval(),
            (noise(0, 2), noise(1, 2)),
            dynamo=True,
            verbose=False,
            input_names=["reconstruction", "images"],
            dynamic_shapes=({0: Dim.DYNAMIC}, {0: Dim.DYNAMIC}),
            opset_version=18,
        )
    assert program is not None
    program.save(str(tmp_path / "residual.onnx"))
    session = open_session((tmp_path / "residual.onnx").read_bytes())
    for n in (1, 3):
        x, y = noise(2, n), noise(3, n)
        (found,) = session.run(None, {"reconstruction": x.numpy(), "images": y.numpy()})
        np.testing.assert_allclose(found, residual(kind, x, y), rtol=1e-4, atol=1e-6)


def test_an_unknown_residual_is_refused() -> None:
    with pytest.raises(BlemishError, match="residual map 'mse'; take one of l1, ssim"):
        Residual("mse", (16, 16))


def test_images_smaller_than_the_window_are_refused() -> None:
    with pytest.raises(BlemishError, match="at least 6 pixels a side, not 5"):
        Residual("ssim", (16, 5))

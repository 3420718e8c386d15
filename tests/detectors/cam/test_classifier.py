"""The pooled head against scikit-learn and Zhou's formula; maps whose mean is the score."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.linear_model import LogisticRegression
from torch import Tensor, nn

from blemish.detectors.cam.classifier import CamGraph, Classifier, Score, fit_head, log_odds
from blemish.detectors.nn.resampling import Resize


class Given(nn.Module):
    """A tail that returns its inputs."""

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        return inputs


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def classifier(channels: tuple[int, ...], classes: int = 2, outputs: int = 2, moments: int = 1) -> Classifier:
    """With a random head, and random means and deviations."""
    made = Classifier(Given(), channels, classes, outputs, moments).requires_grad_(False)
    made.head.weight.copy_(draw(*made.head.weight.shape, seed=1))
    made.head.bias.copy_(draw(*made.head.bias.shape, seed=2))
    made.mean.copy_(draw(len(made.mean), seed=3))
    made.std.copy_(draw(len(made.std), seed=4).abs() + 0.5)
    return made


@pytest.mark.parametrize("outputs", [1, 2, 3])
@pytest.mark.parametrize("penalty", [1.0, 0.1])
def test_the_head_is_scikit_learns_logistic_regression(outputs: int, penalty: float) -> None:
    classes = max(2, outputs)
    targets = torch.arange(60) % 7 % classes
    pooled = draw(60, 5) + 0.7 * F.one_hot(targets, 5).float()
    weights = torch.tensor([0.6, 2.5, 1.4])[:classes]
    weight, bias = fit_head(pooled, targets, weights, outputs=outputs, penalty=penalty)
    assert weight.shape == (outputs, 5)
    # With one row per class the penalty weighs each: for two classes, rows are w and -w, half of |w - -w|^2.
    c = 1 / penalty if outputs != 2 else 2 / penalty
    oracle = LogisticRegression(C=c, class_weight=dict(enumerate(weights.tolist())), tol=1e-10, max_iter=5000)
    oracle.fit(pooled.double().numpy(), targets.numpy())
    logits = F.pad(pooled @ weight.T + bias, (1, 0)) if outputs == 1 else pooled @ weight.T + bias
    np.testing.assert_allclose(logits.softmax(1), oracle.predict_proba(pooled.double().numpy()), atol=2e-5)
    if outputs == 1:
        np.testing.assert_allclose(weight, oracle.coef_, atol=1e-4)
        np.testing.assert_allclose(bias, oracle.intercept_, atol=1e-4)
    if outputs == 2:
        np.testing.assert_allclose(weight[1:] - weight[:1], oracle.coef_, atol=1e-4)


def test_log_odds_by_hand() -> None:
    two = log_odds(torch.tensor([[1.0, 3.5], [2.0, -1.0]]))
    assert two.tolist() == [2.5, -3.0]
    logits = torch.log(torch.tensor([[0.2, 0.5, 0.3], [0.9, 0.06, 0.04]])) + 4
    torch.testing.assert_close(log_odds(logits), torch.log(torch.tensor([0.8 / 0.2, 0.1 / 0.9])))


def test_pooled_and_logits_by_hand() -> None:
    """Means 2.5 and 1, mean squares 7.5 and 3."""
    features = torch.tensor([[[[1.0, 2.0], [3.0, 4.0]], [[0.0, 3.0], [1.0, 0.0]]]])
    made = Classifier(Given(), [2], 2, 1, 2).requires_grad_(False)
    found = made.features(features)
    assert [tuple(one.shape) for one in found] == [(1, 4, 2, 2)]
    assert made.pooled(found).tolist() == [[2.5, 1, 7.5, 2.5]]
    made.head.weight.copy_(torch.tensor([[1.0, -2.0, 0.5, 4.0]]))
    made.head.bias.fill_(3.0)
    assert made(features).tolist() == [[0, 2.5 - 2 + 3.75 + 10 + 3]]
    made.mean.copy_(torch.tensor([0.5, 0, 0, 0]))
    made.std.copy_(torch.tensor([2.0, 1, 1, 1]))
    assert made(features).tolist() == [[0, 1 - 2 + 3.75 + 10 + 3]]
    plain = Classifier(Given(), [2], 2, 2, 1)
    assert torch.equal(plain.features(features)[0], features)
    assert plain.head.weight.shape == (2, 2)


def test_squared_deviations_by_hand() -> None:
    """Of two good images the two cells have means 2 and 5 and spreads 1 and 0; half the mean spread is added."""
    made = Classifier(Given(), [1], 2, 2, 2, [(1, 2)]).requires_grad_(False)
    assert made.head.in_features == 1  # without further moments
    made.fit_reference([[torch.tensor([[[[1.0, 5.0]]], [[[3.0, 5.0]]]])]])
    (found,) = made.features(torch.tensor([[[[4.5, 5.5]]]]))
    assert found.flatten().tolist() == pytest.approx([(2.5 / 1.25) ** 2, (0.5 / 0.25) ** 2], rel=1e-4)


SIZES = [((8, 12),), ((8, 12), (4, 6)), ((6, 6), (3, 3), (1, 1)), ((9, 7), (5, 4)), ((25, 13), (13, 7))]


@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize(("classes", "outputs"), [(2, 1), (2, 2), (3, 2)])
@pytest.mark.parametrize("moments", [1, 2])
def test_the_mean_of_the_cells_is_the_logits(
    sizes: tuple[tuple[int, int], ...], classes: int, outputs: int, moments: int
) -> None:
    """Also where a coarser layer's grid does not divide the first one's."""
    channels = tuple(range(3, 3 + len(sizes)))
    made = classifier(channels, classes, outputs, moments)
    features = made.features(*(draw(2, c, *size, seed=c) for c, size in zip(channels, sizes, strict=True)))
    cells = made.cells(features)
    assert cells.shape == (2, classes, *sizes[0])
    torch.testing.assert_close(cells.mean((2, 3)), made.logits(features), rtol=1e-5, atol=2e-5)
    torch.testing.assert_close(made.log_odds_cells(features, True), log_odds(cells.movedim(1, -1)))
    assert (cells[:, -1] - cells[:, -1].mean((1, 2), keepdim=True)).abs().max() > 0.1


def test_coarser_cells_are_enlarged_bilinearly() -> None:
    """Halved: torch's own interpolation is the oracle; each layer has its own part of the weight."""
    made = classifier((3, 4), outputs=1)
    fine, coarse = draw(2, 3, 8, 12, seed=5), draw(2, 4, 4, 6, seed=6)
    weight, bias = made.linear()
    wanted = (weight[0, :3, None, None] * fine).sum(1, keepdim=True) + F.interpolate(
        (weight[0, 3:, None, None] * coarse).sum(1, keepdim=True), scale_factor=2, mode="bilinear"
    )
    torch.testing.assert_close(made.cells([fine, coarse])[:, 1:], wanted + bias[0])


def test_the_published_map_is_the_weighted_sum_of_features() -> None:
    """Eq. 2 of Zhou et al.: M_c = sum_k w_k^c f_k, of the anomaly, without the bias."""
    made = Classifier(Given(), [5], 2, 2, 1).requires_grad_(False)
    features = draw(3, 5, 4, 6)
    found = made.log_odds_cells(made.features(features), contrast=False)
    wanted = sum(made.head.weight[1, k] * features[:, k] for k in range(5))
    torch.testing.assert_close(found, torch.as_tensor(wanted))
    against = made.log_odds_cells(made.features(features), contrast=True)
    rows, bias = made.head.weight, made.head.bias
    torch.testing.assert_close(
        against, torch.einsum("k,nkhw->nhw", rows[1] - rows[0], features) + bias[1] - bias[0], rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize("moments", [1, 2])
def test_one_output_equals_two_of_opposite_rows(moments: int) -> None:
    one, two = classifier((4,), outputs=1, moments=moments), classifier((4,), moments=moments)
    two.head.weight.copy_(torch.cat([-one.head.weight, one.head.weight]) / 2)
    two.head.bias.copy_(torch.cat([-one.head.bias, one.head.bias]) / 2)
    features = one.features(draw(3, 4, 5, 6))
    torch.testing.assert_close(one.logits(features).softmax(1), two.logits(features).softmax(1))
    torch.testing.assert_close(log_odds(one.logits(features)), log_odds(two.logits(features)))
    torch.testing.assert_close(one.log_odds_cells(features, True), two.log_odds_cells(features, True))


@pytest.mark.parametrize("outputs", [1, 2])
@pytest.mark.parametrize("moments", [1, 2])
def test_the_scores_gradient_is_that_of_the_log_odds(outputs: int, moments: int) -> None:
    """At the second of three pooled layers, from which the third is computed too; the first is a constant."""

    class Rest(nn.Module):
        def forward(self, activations: Tensor) -> tuple[Tensor, Tensor]:
            return activations, F.avg_pool2d(activations.tanh(), 2)

    made = classifier((2, 3, 3), outputs=outputs, moments=moments)
    first, activations = draw(2, 2, 8, 8, seed=7), draw(2, 3, 4, 4, seed=8).requires_grad_()
    whole = log_odds(made(first, *Rest()(activations)))
    (wanted,) = torch.autograd.grad(whole.sum(), activations)
    score = Score(Rest(), made, 2)(activations)
    (found,) = torch.autograd.grad(score.sum(), activations)
    torch.testing.assert_close(found, wanted)
    offset = (whole - score).detach()  # of the first layer and the bias
    again = log_odds(made(first, *Rest()(activations * 0.3))) - Score(Rest(), made, 2)(activations * 0.3)
    torch.testing.assert_close(offset, again.detach(), rtol=1e-4, atol=1e-5)


class Split(nn.Module):
    """Resized images -> activations of the map's layer, and of the pooled layer, which is the same one."""

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        found = F.avg_pool2d(images, 4) / 100
        return found, found


@pytest.mark.parametrize("classes", [2, 3])
def test_the_graph_by_hand(classes: int) -> None:
    made = classifier((3,), classes)
    whole = CamGraph(
        Resize(16, 24), Split(), made, (4, 6), fine=None, sigma=0.0, contrast=True, temperature=2.5, types=classes > 2
    )
    images = torch.randint(0, 256, (2, 16, 24, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    found = dict(zip(whole.outputs, whole(images), strict=True))
    features = [F.avg_pool2d(images.permute(0, 3, 1, 2).float(), 4) / 100]
    logits, cells = made.logits(features), made.cells(features)
    torch.testing.assert_close(found["scores"], log_odds(logits))
    torch.testing.assert_close(found["probabilities"], (logits / 2.5).softmax(1))

    def enlarged(maps: Tensor) -> Tensor:
        return F.interpolate(maps, scale_factor=4, mode="bilinear")

    torch.testing.assert_close(found["maps"], enlarged(log_odds(cells.movedim(1, -1))[:, None])[:, 0])
    assert ("class_maps" in found) is (classes > 2)
    if classes > 2:
        torch.testing.assert_close(found["class_maps"], enlarged(cells[:, 1:] - cells[:, :1]))

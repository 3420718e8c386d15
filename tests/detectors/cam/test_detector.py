"""The whole classifier against a plain loop over the whole network, and against the published formula."""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytorch_grad_cam  # type: ignore[import-untyped]
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from blemish.detectors.cam.classifier import log_odds
from blemish.detectors.cam.config import CamConfig, case_study
from blemish.detectors.cam.detector import Cam
from blemish.detectors.nn.augment import turn, variants
from blemish.detectors.nn.backbones import load_backbone
from blemish.detectors.nn.resampling import Resize
from blemish.images import load_image
from blemish.types import BlemishError, Sample
from tests.conftest import tile
from tests.detectors.support import StoppedError, killed_in
from tests.support import write_image

SMALL = CamConfig(
    image_size=(64, 64), random_weights=True, epochs=4, batch=4, learning_rate=1e-3, stop_at=2.0, sigma=0.0
)
# Without norms, which are folded into convolutions and so are trained in other coordinates than in a plain loop.
VGG = replace(
    SMALL, backbone="torchvision/vgg11", layers=("features.14", "features.19"), learning_rate=2e-4, head_first=False
)


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> list[Sample]:
    """Eight good tiles, four with a bright and three with a dark square."""
    root = tmp_path_factory.mktemp("tiles")
    tiles = []
    for i in range(15):
        kind = "good" if i < 8 else "bright" if i < 12 else "dark"
        pixels, mask = tile(i, None if kind == "good" else (4 + 5 * (i - 8), 60 - 7 * (i - 8)))
        if kind == "dark":
            pixels[mask > 0] = 5
        path = write_image(root / f"{kind}/{i}.png", pixels)
        name = f"{kind}/{i}.png"
        tiles.append(Sample(path, name, "good") if kind == "good" else Sample(path, name, "anomaly", kind))
    return tiles


BUILT: dict[str, Cam] = {}


def cam(config: CamConfig) -> Cam:
    """Each network is traced once; fields of the config that only a fit needs may differ."""
    free = (
        "epochs",
        "batch",
        "learning_rate",
        "stop_at",
        "head_weights",
        "classes",
        "checkpoint",
        "resume",
        "outputs",
        "processes",
    )
    plain = CamConfig()
    key = str(replace(config, **{name: getattr(plain, name) for name in free}))
    if key not in BUILT:
        BUILT[key] = Cam(config)
    BUILT[key].config = config
    return BUILT[key]


def images(samples: Sequence[Sample]) -> Tensor:
    """uint8 `(N, 60, 80, 3)`."""
    return torch.stack([torch.tensor(load_image(sample.path)) for sample in samples])


def weights_of(detector: Cam) -> dict[str, Tensor]:
    assert detector._classifier is not None
    return {name: value.clone() for name, value in detector._classifier.state_dict().items()}


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    """To the bit."""
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def plain_loop(config: CamConfig, samples: Sequence[Sample], trained: tuple[str, ...]) -> tuple[list[float], Tensor]:
    """Every epoch runs the whole network on images. Losses, and the logits of the unchanged images afterwards."""
    backbone = load_backbone(config.backbone, layers=config.layers, image_size=config.image_size, random=True)
    torch.manual_seed(config.seed)
    head = nn.Linear(2 * sum(tap.channels for tap in backbone.taps), 2)
    learned = [value for name, value in backbone.named_parameters() if name.startswith(trained)]
    assert len(learned) == 4  # two convolutions
    optimiser = torch.optim.AdamW([p.requires_grad_() for p in [*learned, *head.parameters()]], config.learning_rate)
    resized = Resize(*config.image_size)(images(samples))
    turns = variants(config.augmentations, config.image_size)
    targets = torch.tensor([int(sample.label == "anomaly") for sample in samples])
    balance = torch.tensor([15 / (2 * 8), 15 / (2 * 7)])

    def logits_of(inputs: Tensor) -> Tensor:
        logits: Tensor = head(torch.cat([f.pow(p).mean((2, 3)) for f in backbone(inputs) for p in (1, 2)], 1))
        return logits

    losses = []
    for epoch in range(config.epochs):
        random = torch.Generator().manual_seed(config.seed * 1_000_003 + epoch)
        turned = torch.randint(len(turns), (15,), generator=random)
        order = torch.randperm(15, generator=torch.Generator().manual_seed(config.seed * 1_000_003 + epoch))
        total = torch.zeros(2)
        for step, chosen in enumerate(order.tensor_split(4)):
            share = (4 * epoch + step) / (4 * config.epochs)
            bend = share / 0.2 if share < 0.2 else 1 + (share - 0.2) / 0.8
            optimiser.param_groups[0]["lr"] = config.learning_rate * (0.01 + 0.99 * (1 - np.cos(np.pi * bend)) / 2)
            optimiser.zero_grad()
            batch = torch.cat([turn(resized[i], turns[turned[i]])[None] for i in chosen.tolist()])
            loss = F.cross_entropy(logits_of(batch), targets[chosen], balance)
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
            weight = balance[targets[chosen]].sum()
            total += torch.stack([loss.detach() * weight, weight])
        losses.append(float(total[0] / total[1]))
    with torch.no_grad():
        return losses, logits_of(resized)


@pytest.mark.parametrize("augmentations", [(), ("flip",)])
def test_training_on_cached_features_equals_training_the_whole_network(
    augmentations: tuple[str, ...], samples: list[Sample]
) -> None:
    config = replace(VGG, augmentations=augmentations)
    losses, logits = plain_loop(config, samples, ("net.features.16.", "net.features.18."))
    detector = cam(config).fit(samples)
    found = [record["loss"] for record in detector.records]
    assert found == pytest.approx(losses, rel=1e-5, abs=1e-5)
    assert losses[0] - losses[-1] > 0.01
    np.testing.assert_allclose(detector.cells(samples)[0], logits, rtol=1e-3, atol=1e-3)


def test_fitting_again_starts_anew_and_the_trunk_stays(samples: list[Sample]) -> None:
    detector = cam(SMALL)
    start = {name: value.clone() for name, value in detector.trunk.state_dict().items()}
    first = weights_of(detector.fit(samples))
    records = detector.records
    detector.fit(samples[2:])
    assert not same(first, weights_of(detector))
    assert same(first, weights_of(detector.fit(samples)))
    assert detector.records == records
    assert same(start, dict(detector.trunk.state_dict()))
    changed = [name for name, value in detector._start.items() if not torch.equal(value, first[f"tail.{name}"])]
    assert len(changed) == len(list(detector._tail.parameters()))


def test_another_folder_with_the_same_names_is_learned_anew(samples: list[Sample], tmp_path: Path) -> None:
    """The cache does not serve features of the first folder's images."""
    others = []
    for sample in samples:
        path = write_image(tmp_path / sample.name, 255 - load_image(sample.path))
        others.append(replace(sample, path=path))
    detector = cam(SMALL).fit(samples)
    logits = detector.cells(samples)[0]
    again = weights_of(detector.fit(others))
    assert same(again, weights_of(Cam(SMALL).fit(others)))
    detector.fit(samples)
    np.testing.assert_array_equal(detector.cells(samples)[0], logits)
    assert np.abs(detector.cells(others)[0] - logits).max() > 0.1


def test_graph_and_cells_agree_and_the_maps_mean_is_the_score(samples: list[Sample]) -> None:
    detector = cam(SMALL).fit(samples)
    logits, maps = detector.cells(samples)
    with torch.inference_mode():
        found = dict(zip(detector.graph().outputs, detector.graph()(images(samples)), strict=True))
    scores = log_odds(torch.tensor(logits))
    np.testing.assert_allclose(found["scores"], scores, rtol=1e-4, atol=1e-3)
    np.testing.assert_allclose(found["probabilities"].sum(1), 1, atol=1e-6)
    np.testing.assert_allclose(found["probabilities"][:, 1], scores.sigmoid(), atol=1e-4)
    np.testing.assert_allclose(maps.mean((1, 2)), scores, rtol=1e-4, atol=1e-3)
    wanted = F.interpolate(torch.tensor(maps)[:, None], scale_factor=8, mode="bilinear")[:, 0]
    np.testing.assert_allclose(found["maps"], wanted, rtol=1e-3, atol=1e-3 * np.abs(maps).max())
    assert scores[8:].min() > scores[:8].max()  # a bright or dark square on stripes, and these were learned from


def test_the_temperature_changes_probabilities_only(samples: list[Sample]) -> None:
    detector = cam(SMALL).fit(samples)
    with torch.inference_mode():
        before = detector.graph()(images(samples))
        temperature = detector.scale_temperature(samples)
        after = detector.graph()(images(samples))
    assert abs(temperature - 1) > 0.05
    assert torch.equal(before[0], after[0])
    assert torch.equal(before[1], after[1])
    torch.testing.assert_close(after[2][:, 1], (before[0] / temperature).sigmoid())
    assert detector.fit(samples).scale_temperature(samples[:8]) == 1.0  # good ones only


def test_types(samples: list[Sample]) -> None:
    detector = cam(replace(SMALL, classes="types")).fit(samples)
    assert detector.classes == ("good", "bright", "dark")
    logits, maps = detector.cells(samples)
    assert logits.shape == (15, 3)
    for kind, rows in enumerate((slice(0, 8), slice(8, 12), slice(12, 15))):  # each class on its own images
        own = logits[rows, kind].mean() - logits[rows].mean()
        assert own > 0.1
    with torch.inference_mode():
        scores, large, probabilities, each, *_ = detector.graph()(images(samples))
    assert each.shape == (15, 2, 64, 64)
    np.testing.assert_allclose(probabilities, torch.tensor(logits).softmax(1), atol=1e-3)
    np.testing.assert_allclose(scores, log_odds(torch.tensor(logits)), rtol=1e-3, atol=1e-3)
    # Enlarged eight times with repeated borders, a map keeps its mean: the type's logit over good's.
    odds = logits[:, 1:] - logits[:, :1]
    np.testing.assert_allclose(each.mean((2, 3)), odds, rtol=1e-3, atol=1e-3 * np.abs(odds).max())
    np.testing.assert_allclose(large.mean((1, 2)), maps.mean((1, 2)), rtol=1e-3, atol=1e-2)
    other = replace(samples[14], defect="scratch")
    # An image of an unknown type is left out.
    assert detector.scale_temperature([*samples, other]) == detector.scale_temperature(samples)


def test_killed_and_resumed_is_the_same_to_the_bit(samples: list[Sample], tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints"
    whole = weights_of(cam(SMALL).fit(samples))
    config = replace(SMALL, checkpoint=folder)
    with pytest.raises(StoppedError):
        cam(config).fit(samples, killed_in(3), run="first")
    assert [file.name for file in folder.iterdir()] == ["first.safetensors"]
    resumed = cam(replace(config, resume=True)).fit(samples, killed_in(2), run="first")
    assert same(whole, weights_of(resumed))
    assert len(resumed.records) == 4
    with pytest.raises(BlemishError, match="other images or options"):
        cam(replace(config, resume=True)).fit(samples[1:], run="first")
    with pytest.raises(BlemishError, match="other images or options"):
        cam(replace(config, resume=True, learning_rate=2e-3)).fit(samples, run="first")
    renamed = [replace(sample, name=f"x/{sample.name}") for sample in samples]
    with pytest.raises(BlemishError, match="other images or options"):
        cam(replace(config, resume=True)).fit(renamed, run="first")
    moved = write_image(tmp_path / "moved.png", np.roll(load_image(samples[0].path), 1, axis=1))
    others = [replace(samples[0], path=moved), *samples[1:]]  # of the same names
    with pytest.raises(BlemishError, match="other images or options"):
        cam(replace(config, resume=True)).fit(others, run="first")


def test_two_processes_learn_what_one_does(samples: list[Sample], capfd: pytest.CaptureFixture[str]) -> None:
    """15 images in batches of 4, 4, 4 and 3, classes of unequal weight."""
    config = replace(SMALL, epochs=2)

    def learned(config: CamConfig) -> tuple[Tensor, list[dict[str, float]]]:
        one = cam(config).fit(samples)
        return torch.cat([weights.double().flatten() for weights in weights_of(one).values()]), one.records

    start, _ = learned(replace(config, epochs=1, learning_rate=0.0))
    wanted, records = learned(config)
    weights, again = learned(replace(config, processes=2))
    # All weights together: where a gradient is nearly zero, Adam makes a full step of its rounding error.
    assert float((weights - wanted).norm()) < 0.03 * float((wanted - start).norm())
    for found, record in zip(again, records, strict=True):
        assert found["loss"] == pytest.approx(record["loss"], rel=1e-4)
        assert found["right"] == record["right"]
    assert capfd.readouterr() == ("", "")


def test_random_changes_are_reproducible(samples: list[Sample]) -> None:
    """The images are cached, and changed anew in each epoch."""
    config = replace(SMALL, augmentations=("shift", "brighten"))
    detector = cam(config).fit(samples)
    first, records = weights_of(detector), detector.records
    assert same(first, weights_of(detector.fit(samples)))
    assert detector.records == records
    fixed = cam(SMALL).fit(samples).records
    assert fixed[0]["loss"] != records[0]["loss"]
    with torch.inference_mode():
        scores = detector.graph()(images(samples))[0]
    np.testing.assert_allclose(scores, log_odds(torch.tensor(detector.cells(samples)[0])), rtol=1e-3, atol=1e-3)


def test_with_unfreeze_0_the_head_is_trained_alone(samples: list[Sample]) -> None:
    detector = Cam(replace(SMALL, unfreeze=0)).fit(samples)
    assert detector.records == []
    assert list(detector._tail.parameters()) == []
    trained = cam(replace(SMALL, epochs=0)).fit(samples)  # its head was fitted first, to the same features
    np.testing.assert_allclose(detector.cells(samples)[0], trained.cells(samples)[0], rtol=1e-4, atol=1e-4)


def test_unfreeze_beyond_the_first_stage_trains_all_of_them(samples: list[Sample]) -> None:
    detector = Cam(replace(SMALL, unfreeze=99, epochs=1)).fit(samples)
    assert list(detector.trunk.parameters()) == []
    after = weights_of(detector)
    changed = [name for name, value in detector._start.items() if not torch.equal(value, after[f"tail.{name}"])]
    whole = {name for name, _ in detector._tail.named_parameters()}
    assert len(whole) == len(list(cam(SMALL).trunk.parameters())) + len(list(cam(SMALL)._tail.parameters()))
    assert len(changed) > 0.9 * len(whole)  # AdamW changes every parameter that is not 0


MAPS = replace(SMALL, layers=("3",), pool="mean")


def test_a_gradients_map_at_the_pooled_layer_is_the_class_activation_map(samples: list[Sample]) -> None:
    plain = cam(MAPS).fit(samples)
    logits, wanted = plain.cells(samples)
    bias = (logits[:, 1] - logits[:, 0])[:, None, None] - wanted.mean((1, 2), keepdims=True)
    np.testing.assert_allclose(bias, 0, atol=1e-3)  # the plain map includes it
    for method in ("gradcam", "hirescam"):
        detector = plain.with_map(method)
        found_logits, found = detector.cells(samples)
        np.testing.assert_allclose(found_logits, logits, rtol=1e-4, atol=1e-4)
        rest = wanted - found
        assert np.ptp(rest) < 1e-3 * np.ptp(wanted)  # the bias, the same for every cell
        np.testing.assert_allclose(found.mean((1, 2)) + rest.mean(), logits[:, 1] - logits[:, 0], atol=1e-2)


class Odds(nn.Module):
    """A detector's network as one module, as pytorch-grad-cam needs it: images -> log-odds `(N, 1)`."""

    def __init__(self, detector: Cam) -> None:
        super().__init__()
        from blemish.detectors.nn import graph_cut

        at, layers = detector._nodes[detector.config.map_layer], list(detector._layers.values())
        self.early = graph_cut.piece(detector._net, [graph_cut.source(detector._net)], [at])
        self.late = graph_cut.piece(detector._net, [at], layers)
        self.at = nn.Identity()
        self.classifier = detector._fitted()

    def forward(self, resized: Tensor) -> Tensor:
        activations = self.at(self.early(resized)[0])
        return log_odds(self.classifier.logits(self.classifier.to_pool(self.late(activations))))[:, None]


def test_layercam_at_an_earlier_layer_is_finer_and_pytorch_grad_cams(samples: list[Sample]) -> None:
    detector = cam(replace(MAPS, map="layercam", map_layer="1")).fit(samples)
    logits, maps = detector.cells(samples)
    assert maps.shape == (15, 16, 16)  # not 4 x 4
    with torch.inference_mode():
        scores, large, *_ = detector.graph()(images(samples))
    assert large.shape == (15, 64, 64)
    np.testing.assert_allclose(scores, logits[:, 1] - logits[:, 0], rtol=1e-4, atol=1e-4)
    network = Odds(detector).eval()
    resized = Resize(64, 64)(images(samples)).requires_grad_()
    first = lambda output: output[0]  # noqa: E731
    with pytorch_grad_cam.LayerCAM(network, [network.at]) as oracle:
        wanted = oracle(resized, targets=[first] * 15)
    ours = F.interpolate(torch.tensor(maps).clamp(min=0)[:, None], (64, 64), mode="bilinear")[:, 0].numpy()
    for found, theirs in zip(ours, wanted, strict=True):
        scaled = (found - found.min()) / (found.max() - found.min())
        assert np.abs(scaled - theirs).max() < 0.02  # OpenCV's interpolation, and 1e-7 in their scaling


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"map": "scorecam"}, "no map called 'scorecam'; take one of cam, gradcam"),
        ({"layers": ("7",)}, "bundled has no stage 7; its stages are 0, 1, 2, 3"),
        ({"map": "gradcam", "map_layer": "9"}, "bundled has no stage 9"),
        ({"map_layer": "1"}, "take --map layercam"),
        ({"map": "layercam", "layers": ("2",), "map_layer": "3"}, "--map-layer 3 comes after the last pooled layer, 2"),
        ({"augmentations": ("stretch",)}, "--augmentations takes .* not 'stretch'"),
    ],
)
def test_unknown_settings_are_refused(change: dict[str, Any], words: str) -> None:
    with pytest.raises(BlemishError, match=words):
        Cam(replace(SMALL, **change))


def test_missing_classes_and_wrong_weights_are_refused(samples: list[Sample]) -> None:
    with pytest.raises(BlemishError, match=r"among 8 there is no defective one; .* patchcore"):
        cam(SMALL).fit(samples[:8])
    with pytest.raises(BlemishError, match="among 7 there is no good one"):
        cam(SMALL).fit(samples[8:])
    with pytest.raises(BlemishError, match=r"takes 2 numbers above 0, one for each of good, anomaly; got 1, 2, 3\."):
        cam(replace(SMALL, head_weights=(1, 2, 3))).fit(samples)
    with pytest.raises(BlemishError, match="takes 2 numbers above 0"):
        cam(replace(SMALL, head_weights=(1, 0))).fit(samples)
    unfitted = copy(cam(SMALL))
    unfitted._classifier = None
    with pytest.raises(RuntimeError, match="fit the detector"):
        unfitted.graph()


class Study:
    """The published settings on eight tiles, for one epoch, with the network as it was before."""

    def __init__(self, samples: Sequence[Sample]) -> None:
        self.samples = samples
        self.config = replace(case_study(CamConfig(random_weights=True)), epochs=1)
        self.detector = Cam(self.config)
        self.before = {n: p.clone() for n, p in self.detector._net.named_parameters() if "features" in n}
        self.head = {n: p.clone() for n, p in self.detector.classifier(2).head.named_parameters()}
        self.detector.cache(samples)
        self.detector.fit(samples)


@pytest.fixture(scope="module")
def study(samples: list[Sample]) -> Study:
    return Study([*samples[:5], *samples[8:10], samples[12]])


def test_the_study_trains_the_last_three_convolutions_and_the_head(study: Study) -> None:
    after = dict(study.detector._net.named_parameters())
    changed = {n.partition("features.")[2] for n, p in study.before.items() if not torch.equal(p, after[n])}
    assert changed == {f"{layer}.{what}" for layer in (24, 26, 28) for what in ("weight", "bias")}
    assert len(study.before) == 26  # ten more convolutions, which stay
    fitted = study.detector._fitted()
    assert not torch.equal(fitted.head.weight, study.head["weight"])
    assert fitted.head.weight.shape == (2, 512)


def test_the_study_weighs_defective_images_three_times(study: Study) -> None:
    """One batch of eight: the loss of the untrained network, with each image's own weight."""
    backbone = load_backbone("torchvision/vgg16", layers=("features.29",), image_size=(224, 224), random=True)
    with torch.no_grad():
        features = backbone(Resize(224, 224)(images(study.samples)))[0]
        logits = features.mean((2, 3)) @ study.head["weight"].T + study.head["bias"]
    assert features.shape == (8, 512, 14, 14)
    targets = torch.tensor([0] * 5 + [1] * 3)
    each = logits.logsumexp(1) - logits[torch.arange(8), targets]
    assert study.config.batch >= 8
    wanted = (each * torch.tensor([1.0] * 5 + [3.0] * 3)).sum() / 14
    assert study.detector.records[0]["loss"] == pytest.approx(float(wanted), rel=1e-5)


def test_the_studys_map_is_the_published_formula(study: Study) -> None:
    """M = sum_k w_k f_k at 14 x 14, from a VGG16 with the trained weights put in, then enlarged bilinearly."""
    backbone = load_backbone("torchvision/vgg16", layers=("features.29",), image_size=(224, 224), random=True)
    trained = {n.partition("features.")[2]: p for n, p in study.detector._net.named_parameters() if "features" in n}
    with torch.no_grad():
        for name, value in backbone.named_parameters():
            value.copy_(trained[name.partition("features.")[2]])
        features = backbone(Resize(224, 224)(images(study.samples)))[0]
        head = study.detector._fitted().head
        maps = torch.stack([sum((head.weight[1, k] * f[k] for k in range(512)), torch.zeros(14, 14)) for f in features])
        logits = features.mean((2, 3)) @ head.weight.T + head.bias
        scores, found, probabilities, *_ = study.detector.graph()(images(study.samples))
    wanted = F.interpolate(maps[:, None], (224, 224), mode="bilinear")[:, 0]
    torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-4 * float(wanted.abs().max()))
    torch.testing.assert_close(scores, logits[:, 1] - logits[:, 0], rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(probabilities, logits.softmax(1), rtol=1e-3, atol=1e-4)


def test_the_study_stops_at_98_percent(samples: list[Sample]) -> None:
    """Not at an epoch with less; the settings are the study's but for the network, which learns faster."""
    study = case_study(CamConfig())
    assert (study.stop_at, study.epochs, study.learning_rate, study.batch) == (0.98, 10, 1e-4, 10)
    free = cam(replace(SMALL, epochs=12, stop_at=2.0)).fit(samples).records
    right = [record["right"] for record in free]
    first = next(epoch for epoch, share in enumerate(right) if share >= 0.98)
    assert 0 <= first < 11
    stopped = cam(replace(SMALL, epochs=12, stop_at=study.stop_at)).fit(samples).records
    assert stopped == free[: first + 1]

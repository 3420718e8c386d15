"""The whole attention detector: its training by hand and resumed, and how its score is chosen."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score
from torch import Tensor

from blemish.data.corrupt import corrupt
from blemish.detectors.attention.config import AttentionConfig, batch_for, epochs_for, expvae, paper, study
from blemish.detectors.attention.corruption import pixels_of
from blemish.detectors.attention.detector import COPIES, SHARES, Attention
from blemish.detectors.attention.graph import attention
from blemish.detectors.attention.losses import loss
from blemish.detectors.attention.models import build
from blemish.detectors.attention.training import Job, _draw, untrained
from blemish.detectors.nn.resampling import Resize
from blemish.images import load_image
from blemish.types import BlemishError, Sample
from tests.conftest import tile
from tests.detectors.support import StoppedError, killed_in
from tests.support import write_image

T = TypeVar("T")
# Its map is the residual, which needs no traced gradient; the attention is trained all the same.
SMALL = AttentionConfig(
    model="autoencoder",
    image_size=(32, 48),
    width=4,
    latent=4,
    epochs=3,
    batch=4,
    attention_loss="mean",
    attention_weight=0.5,
)


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> list[Sample]:
    """Sixteen good tiles, the last four two views each of two items."""
    root = tmp_path_factory.mktemp("tiles")
    return [
        Sample(write_image(root / f"{i:02}.png", tile(i)[0]), f"{i:02}.png", "good", group=f"item {i // 2}" * (i >= 12))
        for i in range(16)
    ]


def resized(samples: Sequence[Sample]) -> Tensor:
    """`(N, 3, 32, 48)` in 0..1."""
    found: Tensor = Resize(32, 48)(torch.stack([torch.tensor(load_image(sample.path)) for sample in samples])) / 255
    return found


def weights_of(detector: Attention) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in detector._learner.state_dict().items()}


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    """To the bit."""
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_what_an_epoch_records_by_hand(samples: list[Sample]) -> None:
    """With a learning rate of 0 the network keeps its initial weights."""
    some = samples[:6]
    config = replace(
        SMALL, learning_rate=0.0, epochs=1, corruption="none", loss="0.5*mse", layers=("encoder.8", "encoder.11")
    )
    detector = Attention(config).fit(some)
    images = resized(some)
    values = images.double().numpy()
    mean, std = values.mean((0, 2, 3)), values.std((0, 2, 3))
    np.testing.assert_allclose(detector._learner.mean.flatten(), mean, rtol=1e-5)
    np.testing.assert_allclose(detector._learner.std.flatten(), std, rtol=1e-4)
    net = build("autoencoder", (32, 48), width=4, latent=4, seed=0)
    net.start_from(torch.tensor(mean).float())
    standard = (images - torch.tensor(mean).view(1, 3, 1, 1)) / torch.tensor(std).view(1, 3, 1, 1)
    code, outputs, _ = net.encode(standard.float(), (8, 11))
    off = ((net.decode(code, []) - images) ** 2).mean((1, 2, 3)).detach()
    slopes = torch.autograd.grad(code.sum(), outputs)
    found = [attention(*pair).mean((1, 2)).detach() for pair in zip(outputs, slopes, strict=True)]
    (record,) = detector.records
    assert record["reconstruction"] == pytest.approx(0.5 * float(off.mean()), rel=1e-4)
    assert record["attention"] == pytest.approx(float(torch.stack(found).mean()), rel=1e-4)
    assert record["loss"] == pytest.approx(record["reconstruction"] + 0.5 * record["attention"], rel=1e-5)


def test_the_attention_loss_lowers_the_attention_in_either_way(samples: list[Sample]) -> None:
    config = replace(SMALL, model="unet", corruption="none", epochs=6, learning_rate=3e-3, attention_weight=5.0)
    last: dict[str, float] = {}
    learned = {}
    for name, options in {
        "none": {"attention_weight": 0.0},
        "together": {},
        "alternate": {"alternate": "every"},
    }.items():
        detector = Attention(replace(config, **options)).fit(samples[:8])  # type: ignore[arg-type]
        assert len(detector.records) == 6
        assert {*detector.records[0]} == {"loss", "reconstruction", "attention"}
        images = detector._learner.eval().requires_grad_(True)
        found = images(resized(samples[:8]), torch.zeros(8, 4), True)[2]
        last[name] = float(found[0].detach().mean())
        learned[name] = [record["reconstruction"] for record in detector.records]
    assert last["together"] < 0.9 * last["none"]
    assert last["alternate"] < 0.9 * last["none"]
    assert all(losses[-1] < losses[0] for losses in learned.values())
    assert learned["alternate"] != learned["together"]
    without = Attention(replace(config, epochs=1, attention_loss="none", alternate="every")).fit(samples[:8])
    assert {*without.records[0]} == {"loss", "reconstruction"}


def test_fitting_again_starts_anew(samples: list[Sample]) -> None:
    detector = Attention(replace(SMALL, augmentations=("flip", "shift", "brighten"))).fit(samples)
    first, records = weights_of(detector), detector.records
    assert not same(first, weights_of(detector.fit(samples[2:])))
    assert same(first, weights_of(detector.fit(samples)))
    assert detector.records == records
    assert not same(first, weights_of(Attention(SMALL).fit(samples)))  # augmentations matter
    other = Attention(replace(SMALL, seed=1, augmentations=("flip", "shift", "brighten"))).fit(samples)
    assert not same(first, weights_of(other))


@pytest.mark.parametrize("alternate", ["no", "every", "last"])
def test_killed_and_resumed_is_the_same_to_the_bit(samples: list[Sample], tmp_path: Path, alternate: str) -> None:
    config = replace(SMALL, model="vae", alternate=alternate, batch=5)  # type: ignore[arg-type]
    straight = Attention(config).fit(samples)
    whole, records = weights_of(straight), straight.records
    checkpointed = replace(config, checkpoint=tmp_path)
    with pytest.raises(StoppedError):
        Attention(checkpointed).fit(samples, killed_in(2))
    assert [file.name for file in tmp_path.iterdir()] == ["attention.safetensors"]
    resumed = Attention(replace(checkpointed, resume=True)).fit(samples, killed_in(1))
    assert same(whole, weights_of(resumed))
    assert resumed.records == records
    for other in (replace(checkpointed, beta=0.5), replace(checkpointed, corruption="mask")):
        with pytest.raises(BlemishError, match="other images or options"):
            Attention(replace(other, resume=True)).fit(samples)
    with pytest.raises(BlemishError, match="other images or options"):
        Attention(replace(checkpointed, resume=True)).fit(samples[1:])
    others = [  # of the same names, mean and deviation
        replace(s, path=write_image(tmp_path / f"moved/{i}.bmp", np.roll(load_image(s.path), 1, axis=1)))
        for i, s in enumerate(samples)
    ]
    with pytest.raises(BlemishError, match="other images or options"):
        Attention(replace(checkpointed, resume=True)).fit(others)


def test_two_processes_learn_what_one_does(samples: list[Sample], capfd: pytest.CaptureFixture[str]) -> None:
    """Alternating steps of a variational autoencoder: gradients of gradients, of each latent number, in both."""
    config = replace(SMALL, model="vae", alternate="every", epochs=2, validation=0.0)
    one = Attention(config).fit(samples[:7])
    two = Attention(replace(config, processes=2)).fit(samples[:7])
    still = Attention(replace(config, learning_rate=0.0)).fit(samples[:7])
    # All weights together: where a gradient is nearly zero, Adam makes a full step of its rounding error.
    found, wanted = (torch.cat([value.double().flatten() for value in weights_of(d).values()]) for d in (two, one))
    start = torch.cat([value.double().flatten() for value in weights_of(still).values()])
    assert float((found - wanted).norm()) < 0.03 * float((wanted - start).norm())
    for of_two, of_one in zip(two.records, one.records, strict=True):
        assert of_two == pytest.approx(of_one, rel=1e-3)
    assert capfd.readouterr() == ("", "")


def test_the_score_is_chosen_on_images_that_were_not_learned_from(samples: list[Sample]) -> None:
    detector = Attention(SMALL).fit(samples)
    learned, held_out = set(detector._rows.tolist()), set(detector._held_out.tolist())
    assert len(learned | held_out) == 16
    assert not learned & held_out
    assert len(held_out) == pytest.approx(0.15 * 16, abs=1.5)
    images = detector._cache.tensors[0]
    mean = images[sorted(learned)].double().mean((0, 2, 3))
    np.testing.assert_allclose(detector._learner.mean.flatten(), mean, rtol=1e-5)
    for item in ("item 6", "item 7"):  # whole items are on one side
        rows = set(detector._cache.rows([sample for sample in samples if sample.group == item]).tolist())
        assert rows <= learned or rows <= held_out
    # Again, with scikit-learn.
    graph = detector.graph()
    others = [pixels_of(images[row]) for row in detector._rows]
    labels: list[bool] = []
    inspected: list[np.ndarray] = []
    for number, row in enumerate(detector._held_out):
        pixels = pixels_of(images[row])
        inspected.append(pixels)
        random = [np.random.default_rng((0, number, copy)) for copy in range(COPIES)]
        inspected += [corrupt(pixels, rng, others=others).image for rng in random]
        labels += [False] + [True] * COPIES
    with torch.inference_mode():
        maps = graph.maps(torch.tensor(np.stack(inspected)).permute(0, 3, 1, 2) / 255)[0]
        wanted = {f"{share:g}": roc_auc_score(labels, graph.scores(maps, share)) for share in SHARES}
    assert detector.validation == pytest.approx(wanted, abs=2e-3)
    assert graph.share in SHARES
    assert detector.validation[f"{graph.share:g}"] == max(detector.validation.values())


def test_too_few_images_hold_none_out(samples: list[Sample]) -> None:
    for some, options in ((samples[:13], {}), (samples, {"validation": 0.0})):
        detector = Attention(replace(SMALL, epochs=1, **options)).fit(some)  # type: ignore[arg-type]
        assert len(detector._rows) == len(some)
        assert len(detector._held_out) == 0
        assert detector.validation == {}
        assert detector.graph().share == 0
    assert Attention(replace(SMALL, epochs=1, score="top")).fit(samples).graph().share == 0.01
    one = Attention(replace(SMALL, epochs=1)).fit(samples[:1])
    with torch.inference_mode():
        scores, maps, *_ = one.graph()(torch.tensor(tile(3)[0])[None])
    assert scores.isfinite().all()
    assert maps.isfinite().all()


def test_another_map_without_training_again(samples: list[Sample]) -> None:
    detector = Attention(replace(SMALL, epochs=1)).fit(samples)
    before, share = weights_of(detector), detector.graph().share
    image = torch.tensor(tile(77, (20, 30))[0])[None]
    with torch.inference_mode():
        first = detector.graph()(image)

    def watched(items: Iterable[T], what: str, total: int) -> Iterator[T]:
        assert not what.startswith("epoch")
        return iter(items)

    changes = {"map": "attention", "standardise": "whole", "score": "max", "input": "difference"}
    other = detector.shown_as(watched, **changes)
    wanted = Attention(replace(SMALL, epochs=1, **changes)).fit(samples)  # type: ignore[arg-type]
    with torch.inference_mode():
        for found, here in zip(other.graph()(image), wanted.graph()(image), strict=True):
            torch.testing.assert_close(found, here, rtol=1e-4, atol=1e-4)
        assert not torch.allclose(other.graph()(image)[1], first[1])
        assert torch.equal(detector.graph()(image)[1], first[1])
    assert same(before, weights_of(other))
    assert (detector.config.map, detector.graph().share) == ("residual", share)
    assert (other.config.map, other.validation) == ("attention", {})
    with pytest.raises(ValueError, match="corruption cannot be changed without training again"):
        detector.shown_as(corruption="none")
    with pytest.raises(BlemishError, match="--map takes residual, attention or combined, not 'all'"):
        detector.shown_as(map="all")


def test_the_study_as_its_paper_has_it(samples: list[Sample]) -> None:
    config = paper(SMALL)
    assert (config.model, config.epochs, config.layers, config.alternate) == ("unet", 50, ("encoder.21",), "no")
    assert (config.image_size, config.width) == ((256, 256), 4)
    detector = Attention(replace(config, epochs=1, image_size=(32, 48))).fit(samples)
    graph = detector.graph()
    assert (graph.kind, graph.input, graph.whole, graph.share, detector.validation) == (
        "attention",
        "difference",
        True,
        0,
        {},
    )
    mean = detector._cache.tensors[0][detector._rows].mean(0)
    torch.testing.assert_close(graph.get_buffer("average"), mean, rtol=1e-4, atol=1e-6)
    with torch.inference_mode():
        maps = graph.maps(detector._cache.tensors[0][detector._rows])[0].double()
    assert float(maps.mean()) == pytest.approx(0, abs=1e-2)
    assert float(maps.std(correction=0)) == pytest.approx(1, abs=1e-2)


def test_the_study_as_its_code_runs_by_hand(samples: list[Sample]) -> None:
    """An epoch: a step down 1 - SSIM with the first nine of fifteen images, and one down the attention with the rest.
    The loop is the study's; images, order, network and SSIM are ours, which have tests of their own."""
    config = replace(study(SMALL), epochs=1, image_size=(64, 64), augmentations=("flip",))
    assert study(SMALL).image_size == (256, 256)
    detector = Attention(config).fit(samples[:15])
    good = detector._cache.tensors[0][detector._rows]
    mean = torch.stack([good.mean(0).flip(axes) for axes in ((), (1,), (2,), (1, 2))]).mean(0)
    torch.testing.assert_close(detector._learner.mean[0], mean, rtol=1e-4, atol=1e-6)
    assert bool((detector._learner.std == 1).all())

    job = Job(config, detector._cache, (), detector._rows, mean, torch.ones(3, 1, 1), "")
    learner = job.learner(untrained(config))
    net = learner.net
    mine, theirs = (torch.optim.Adam(net.parameters(), lr=1e-3, betas=(0.95, 0.999)) for _ in range(2))
    torch.manual_seed(0)
    order = torch.randperm(15)
    images = _draw(job, [], order[:9], 0).images
    mine.zero_grad()
    features = net.encoder(images - mean)
    off = loss(((1, "ssim"),), net.decode(features.flatten(1), []), images).mean()
    off.backward()  # type: ignore[no-untyped-call]
    mine.step()

    images = _draw(job, [], order[9:], 0).images
    features = net.encoder[:22](images - mean)
    code = net.encoder[22:](features).flatten(1)
    (slope,) = torch.autograd.grad(code.sum(), features, retain_graph=True)
    weights = (slope / (slope.square().mean() + 1e-12).sqrt()).mean((2, 3), keepdim=True)
    theirs.zero_grad()
    shown = (weights * features).abs().mean()
    shown.backward()
    theirs.step()

    (record,) = detector.records
    assert record["loss"] == record["reconstruction"] == pytest.approx(off.item(), rel=1e-3)
    assert 0 < record["attention"] < 1e-6  # made of rounding noise, see below
    assert 0 < shown.item() < 1e-6
    # All weights together: where a gradient is nearly zero, Adam makes a full step of its rounding error.
    start = untrained(config).net.parameters()
    ours = [p.detach().flatten() for p in detector._learner.net.parameters()]
    moved = torch.cat([(p.detach() - q.detach()).flatten() for p, q in zip(net.parameters(), start, strict=True)])
    apart = torch.cat(ours) - torch.cat([p.detach().flatten() for p in net.parameters()])
    assert float(apart.norm()) < 0.03 * float(moved.norm())


def test_the_studys_attention_weights_are_zero_but_for_rounding() -> None:
    """An instance norm follows encoder.21, so its gradient cancels in every channel: more digits, smaller weights."""
    net = build("study", (64, 96))
    images = torch.rand(3, 3, 64, 96, generator=torch.Generator().manual_seed(0))
    largest = []
    for kind in (torch.float32, torch.float64):
        net.to(kind)
        features = net.encoder[:22](images.to(kind)).detach().requires_grad_()
        (slope,) = torch.autograd.grad(net.tail(21)(features).sum(), features)
        size = slope.square().mean().sqrt()
        assert size > 1e-3
        largest.append(float((slope.mean((2, 3)) / size).abs().max()))
    assert largest[0] < 1e-6
    assert largest[1] < 1e-14
    assert [net.cancels(layer) for layer in (20, 21, 22, 23, 24, 26)] == [False, True, False, False, True, False]
    assert not build("unet", (64, 96)).cancels(21)  # a group norm does see a shift of one channel


@pytest.mark.parametrize(("shown", "standard"), [("difference", True), ("residual", False), ("image", False)])
def test_what_the_study_standardises(samples: list[Sample], shown: str, standard: bool) -> None:
    """exp((mean - image)^3) is, image - reconstruction is not, and the image has its mean subtracted anyway."""
    config = replace(study(SMALL), untrained=True, image_size=(64, 64), input=shown)  # type: ignore[arg-type]
    graph = Attention(config).fit(samples[:6]).graph()
    assert bool((graph.get_buffer("probe_std") != 1).all()) == standard
    assert bool((graph.get_buffer("probe_mean") != 0).all()) == standard


def test_expvae(samples: list[Sample]) -> None:
    config = replace(expvae(SMALL), epochs=1, image_size=(32, 32), batch=8)
    assert (expvae(SMALL).image_size, config.latent, config.input, config.map) == ((256, 256), 32, "image", "attention")
    detector = Attention(config).fit(samples[:8])
    with torch.inference_mode():
        scores, maps, reconstruction, *_ = detector.graph()(torch.tensor(tile(3)[0])[None])
    assert scores.isfinite().all()
    assert maps.shape == (1, 32, 32)
    assert reconstruction.dtype == torch.uint8


def test_more_cycles_continue_fewer(samples: list[Sample], tmp_path: Path) -> None:
    """Two cycles at once are the same bits as one, and then two resumed from there."""
    config = replace(SMALL, epochs=2)
    whole = Attention(replace(config, cycles=2)).fit(samples)
    assert len(whole.records) == 4
    first = Attention(replace(config, checkpoint=tmp_path)).fit(samples)
    assert first.records == whole.records[:2]
    resumed = Attention(replace(config, cycles=2, checkpoint=tmp_path, resume=True)).fit(samples)
    assert resumed.records == whole.records
    assert same(weights_of(whole), weights_of(resumed))


def test_an_untrained_network_is_the_one_that_is_drawn(samples: list[Sample]) -> None:
    still = Attention(replace(SMALL, untrained=True)).fit(samples)
    assert still.records == []
    assert same(weights_of(still), weights_of(Attention(replace(SMALL, learning_rate=0.0, decay=0.0)).fit(samples)))


@pytest.mark.parametrize(("images", "wanted"), [(209, 128), (391, 128), (129, 128), (128, 76), (80, 48), (1, 1)])
def test_the_batch_leaves_a_remainder_for_the_attention(images: int, wanted: int) -> None:
    assert batch_for(study(AttentionConfig()), images) == wanted
    assert batch_for(AttentionConfig(batch=128), images) == 128


def test_blur_is_part_of_the_graph(samples: list[Sample]) -> None:
    detector = Attention(replace(SMALL, epochs=1, corruption="blur")).fit(samples[:4])
    learner = detector.graph().learner
    assert learner.blur is not None
    image = resized(samples[:1])
    assert learner.standard(image).std() < ((image - learner.mean) / learner.std).std()
    assert Attention(SMALL)._start.blur is None


@pytest.mark.parametrize(("images", "wanted"), [(1, 80), (99, 80), (200, 40), (8000, 1), (100000, 1)])
def test_as_many_epochs_as_show_enough_images(images: int, wanted: int) -> None:
    assert epochs_for(images) == wanted


def test_order_of_calls_and_no_images_are_refused() -> None:
    detector = Attention(SMALL)
    with pytest.raises(RuntimeError, match="fit the detector"):
        detector.graph()
    with pytest.raises(RuntimeError, match="fit the detector"):
        detector.shown_as(map="attention")
    with pytest.raises(BlemishError, match="at least one good image"):
        detector.fit([])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"model": "gan"}, "--model takes unet, autoencoder, vae, resnet, resnet-vae or study, not 'gan'"),
        ({"corruption": "rain"}, "--corruption takes patches, mask, noise, blur or none, not 'rain'"),
        ({"attention_loss": "max"}, "--attention-loss takes mean, mean-std or none"),
        ({"input": "noise"}, "--input takes image, difference or residual"),
        ({"map": "cam"}, "--map takes residual, attention or combined"),
        ({"residual": "mse"}, "--residual takes ssim or l1"),
        ({"standardise": "no"}, "--standardise takes place or whole"),
        ({"score": "mean"}, "--score takes auto, max or top"),
        ({"pretrained": True}, "--pretrained is for --model resnet; autoencoder learns"),
        ({"layers": ("encoder.99",)}, "there is no layer 'encoder.99'"),
        ({"alternate": "last", "processes": 2}, "takes one process; omit --processes"),
        ({"loss": "rmse"}, "has a term 'rmse'"),
        ({"augmentations": ("melt",)}, "--augmentations takes .* not 'melt'"),
        ({"image_size": (33, 48)}, "33x48 does not fit"),
        ({"log": "paper"}, "paper"),
        pytest.param(
            {"device": "cuda"}, "no CUDA card", marks=pytest.mark.skipif(torch.cuda.is_available(), reason="a card")
        ),
    ],
)
def test_refusals(options: dict[str, Any], message: str) -> None:
    with pytest.raises(BlemishError, match=message):
        Attention(replace(SMALL, **options))


def test_a_training_that_diverges_is_an_error(samples: list[Sample]) -> None:
    with pytest.raises(BlemishError, match="training diverged"):
        Attention(replace(SMALL, learning_rate=1e30, model="vae")).fit(samples[:4])


def test_where_the_weights_come_from() -> None:
    origin = Attention(SMALL).origin
    assert origin.source == "learned from these images alone"
    assert origin.name == "autoencoder, from scratch"

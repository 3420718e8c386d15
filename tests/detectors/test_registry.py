from dataclasses import replace

import pytest

from blemish.detectors.attention.config import AttentionConfig, paper, study
from blemish.detectors.cam.config import CamConfig, case_study
from blemish.detectors.patchcore.config import PatchCoreConfig
from blemish.detectors.registry import settings_for
from blemish.types import BlemishError


def test_what_was_not_asked_stays_the_default() -> None:
    assert settings_for("patchcore", {"coreset": None, "memory": None}) == PatchCoreConfig()
    assert settings_for("cam", {"unfreeze": None}) == CamConfig()


def test_what_was_asked() -> None:
    asked = {
        "layers": "2, 3",
        "augmentations": "flip",
        "classes": "types",
        "pool": "deviations",
        "head_weights": "1,3,2",
    }
    config = settings_for("cam", asked)
    assert config == CamConfig(
        layers=("2", "3"), augmentations=("flip",), classes="types", pool="deviations", head_weights=(1.0, 3.0, 2.0)
    )
    assert settings_for("cam", {"pool": "mean"}) == CamConfig(pool="mean")
    assert settings_for("cam", {"log": "wandb"}) == CamConfig(log="wandb")
    assert settings_for("patchcore", {"memory": 0.5}) == PatchCoreConfig(memory=0.5)


def test_the_recipe_and_what_changes_it() -> None:
    assert settings_for("cam", {}, recipe="case-study") == case_study(CamConfig())
    changed = settings_for("cam", {"epochs": 1, "random_weights": True}, recipe="case-study")
    assert isinstance(changed, CamConfig)
    assert (changed.epochs, changed.learning_rate, changed.backbone) == (1, 1e-4, "torchvision/vgg16")


def test_the_autoencoders_options_and_recipe() -> None:
    assert settings_for("attention", {"epochs": None}) == AttentionConfig()
    asked = {"model": "vae", "layers": "encoder.11", "map": "attention", "input": "residual", "alternate": "every"}
    config = settings_for("attention", {**asked, "augmentations": "flip,shift", "latent": 8})
    wanted = AttentionConfig(
        model="vae", layers=("encoder.11",), map="attention", input="residual", alternate="every", latent=8
    )
    assert config == replace(wanted, augmentations=("flip", "shift"))
    assert settings_for("attention", {}, recipe="study") == study(AttentionConfig())
    assert settings_for("attention", {}, recipe="paper") == paper(AttentionConfig())
    changed = settings_for("attention", {"layers": "encoder.14", "epochs": 2}, recipe="study")
    assert isinstance(changed, AttentionConfig)
    assert (changed.layers, changed.epochs, changed.alternate) == (("encoder.14",), 2, "last")


@pytest.mark.parametrize(
    ("detector", "asked", "said"),
    [
        ("none", {}, "there is no detector 'none'; choose one of patchcore, hybrid"),
        ("patchcore", {"unfreeze": 1}, "--unfreeze is not an option of --detector patchcore"),
        ("patchcore", {"log": "wandb"}, "--log is not an option of --detector patchcore"),
        ("cam", {"max_bank": 5}, "--max-bank is not an option of --detector cam"),
        ("attention", {"coreset": 0.1}, "--coreset is not an option of --detector attention"),
        ("cam", {"attention_loss": "mean"}, "--attention-loss is not an option of --detector cam"),
        ("cam", {"classes": "three"}, "--classes takes binary or types"),
        ("cam", {"pool": "max"}, "--pool takes mean, moments or deviations"),
        ("cam", {"head_weights": "a,b"}, "a number for each class"),
    ],
)
def test_refusals(detector: str, asked: dict[str, object], said: str) -> None:
    with pytest.raises(BlemishError, match=said):
        settings_for(detector, asked)


def test_the_recipe_belongs_to_detectors_that_were_published() -> None:
    with pytest.raises(
        BlemishError,
        match="there is no recipe 'case-study' of --detector patchcore; there is case-study of --detector cam",
    ):
        settings_for("patchcore", {}, recipe="case-study")

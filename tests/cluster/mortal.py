"""A detector whose process dies. Ray's workers import it, so it stands alone."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar, Self

import torch

from blemish.detectors.interface import Traits
from blemish.detectors.patchcore.config import PatchCoreConfig
from blemish.detectors.patchcore.detector import PatchCore
from blemish.options import setting
from blemish.types import BlemishError, Progress, Sample, silent


@dataclass(frozen=True)
class MortalConfig(PatchCoreConfig):
    """PatchCore as a detector that is trained by gradient, and whose process dies in its first `deaths` trainings."""

    traits: ClassVar[Traits] = replace(PatchCoreConfig.traits, name="mortal", trained_by_gradient=True)

    deaths: int = setting(0, "Deaths.")
    sleep: float = setting(0.0, "Seconds.")
    count: bool = setting(False, "Fail, and say how many threads there were.")
    checkpoint: Path | None = None
    resume: bool = False

    def build(self) -> PatchCore:
        return Mortal(self)


class Mortal(PatchCore):
    def fit(self, samples: Sequence[Sample], progress: Progress = silent, *, held_out: Sequence[Sample] = ()) -> Self:
        config = self.config
        assert isinstance(config, MortalConfig)
        assert config.checkpoint
        assert config.resume
        begun = len(list(config.checkpoint.iterdir()))
        (config.checkpoint / str(begun)).touch()
        if begun < config.deaths:
            os.kill(os.getpid(), signal.SIGKILL)
        if config.count:
            raise BlemishError(f"{torch.get_num_threads()} threads, begun {begun} times before")
        time.sleep(config.sleep)
        return super().fit(samples, progress)

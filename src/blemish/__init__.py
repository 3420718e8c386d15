"""blemish: explainable visual inspection. Everything is loaded on first use, so that `import blemish` costs nothing.

Inference needs no PyTorch: `Inspector`, `Verdict`, `Region`, `Prediction`, `Folder`, `BlemishError`. Learning does:
`train`, `PatchCore`, `Hybrid`, `Cam`, `Attention`.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

__version__ = "0.1.0"
__all__ = [
    "Attention",
    "BlemishError",
    "Cam",
    "Folder",
    "Hybrid",
    "Inspector",
    "PatchCore",
    "Prediction",
    "Region",
    "Verdict",
    "__version__",
    "train",
]

if TYPE_CHECKING:
    from blemish.data.folder import Folder
    from blemish.inference.inspector import Inspector
    from blemish.training.estimator import Attention, Cam, Hybrid, PatchCore, train
    from blemish.types import BlemishError, Prediction, Region, Verdict

_WHERE = {
    "Attention": "blemish.training.estimator",
    "BlemishError": "blemish.types",
    "Cam": "blemish.training.estimator",
    "Folder": "blemish.data.folder",
    "Hybrid": "blemish.training.estimator",
    "Inspector": "blemish.inference.inspector",
    "PatchCore": "blemish.training.estimator",
    "Prediction": "blemish.types",
    "Region": "blemish.types",
    "Verdict": "blemish.types",
    "train": "blemish.training.estimator",
}


def __getattr__(name: str) -> object:
    if name not in _WHERE:
        raise AttributeError(f"module 'blemish' has no attribute {name!r}")
    return getattr(import_module(_WHERE[name]), name)


def __dir__() -> list[str]:
    return __all__

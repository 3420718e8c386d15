"""blemish: explainable visual inspection. `from blemish import Inspector` is the whole Python API of the line."""

from __future__ import annotations

from typing import TYPE_CHECKING

__version__ = "0.1.0"
__all__ = ["BlemishError", "Inspector", "Region", "Verdict", "__version__"]

if TYPE_CHECKING:
    from blemish.inference.inspector import Inspector
    from blemish.types import BlemishError, Region, Verdict


def __getattr__(name: str) -> object:
    # Loaded on first use (PEP 562), so that `import blemish` costs next to nothing.
    if name == "Inspector":
        from blemish.inference.inspector import Inspector

        return Inspector
    if name in {"BlemishError", "Region", "Verdict"}:
        from blemish import types

        return getattr(types, name)
    raise AttributeError(f"module 'blemish' has no attribute {name!r}")

"""A folder of images, for use from Python."""

from __future__ import annotations

from collections import Counter
from functools import cached_property
from pathlib import Path

from blemish.data import layouts
from blemish.types import Sample


class Folder:
    """What is in a folder of images, in any layout that `blemish data` knows; no image is decoded.

    >>> Folder("tiles").good  # doctest: +SKIP
    [Sample(path=PosixPath('tiles/good/000.png'), name='good/000.png', label='good', ...), ...]

    Raises `BlemishError` where the folder is missing or its layout is not known, when it is first looked at.
    """

    def __init__(self, path: Path | str, layout: str = "auto") -> None:
        self.path, self.layout = Path(path), layout

    @cached_property
    def samples(self) -> list[Sample]:
        """All images, in order of name."""
        return list(layouts.read(self.path, self.layout).samples)

    @property
    def good(self) -> list[Sample]:
        """Good images, and those without a label, outside the folder's own test."""
        return [sample for sample in self.samples if sample.label != "anomaly" and sample.split != "test"]

    @property
    def defective(self) -> list[Sample]:
        """Defective images, wherever they are."""
        return [sample for sample in self.samples if sample.label == "anomaly"]

    @property
    def test(self) -> list[Sample]:
        """The folder's own test; [] where it has none."""
        return [sample for sample in self.samples if sample.split == "test"]

    def __len__(self) -> int:
        return len(self.samples)

    def __repr__(self) -> str:
        kinds = Counter(sample.defect or sample.label or "unlabelled" for sample in self.samples)
        return f"Folder({str(self.path)!r}: {', '.join(f'{count} {kind}' for kind, count in kinds.items())})"

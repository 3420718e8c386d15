"""What the readers of layouts see of a folder, and what they give back."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from blemish.images import ImageError, load_image
from blemish.listing import DEPTH, Reason, Tree, natural
from blemish.masks import looks_drawn
from blemish.types import BlemishError, Sample, SplitName

GOOD = frozenset({"good", "ok", "normal"})  # folder names, in any case


class LayoutError(BlemishError):
    """A folder that is no data set, or could be several: says what is there, what is expected and what to do."""


class MisfitError(Exception):
    """Raised by a reader where the folder does not have its layout; the text says what is missing."""


@dataclass
class Reading:
    """The samples that a layout names, in words what was read as what, and of the images that are not samples and not
    their masks: why not, and of a mask that fits several images: which. `other` images of the folder are not named."""

    samples: list[Sample]
    what: str = ""
    left: dict[str, Reason] = field(default_factory=dict)
    ambiguous: dict[str, list[str]] = field(default_factory=dict)


@dataclass(frozen=True)
class Listing:
    """A folder as the readers see it: names only. `top` is the part of the tree that it is, "" or with a slash."""

    root: Path
    tree: Tree
    top: str = ""

    @cached_property
    def _inside(self) -> dict[str, tuple[list[str], list[str]]]:
        """The images and the folders directly in each folder, by its name."""
        inside: dict[str, tuple[list[str], list[str]]] = {}
        for kind, names in enumerate((self.tree.images, self.tree.folders)):
            for name in names:
                if name.startswith(self.top):
                    folder, _, own = name[len(self.top) :].rpartition("/")
                    inside.setdefault(folder, ([], []))[kind].append(own)
        return inside

    def images(self, folder: str = "", depth: int = 0) -> list[str]:
        """Names relative to `folder` of the images in it, and in its own folders down to `depth`, in natural order."""
        images, folders = self._inside.get(folder, ([], []))
        found = list(images)
        for name in folders if depth else ():
            found += [f"{name}/{image}" for image in self.images(f"{folder}/{name}" if folder else name, depth - 1)]
        return sorted(found, key=natural)

    @property
    def folders(self) -> list[str]:
        """The folders directly in the root, in natural order."""
        return self.folders_in("")

    def folders_in(self, folder: str) -> list[str]:
        return self._inside.get(folder, ([], []))[1]

    def below(self, folder: str) -> Listing:
        """One of the folders as a listing of its own."""
        return Listing(self.root / folder, self.tree, f"{self.top}{folder}/")

    def looks_like_masks(self, folder: str) -> bool | None:
        """Whether the images in a folder and below are drawn in few values, as masks are: see `are_drawn`."""
        return self.are_drawn([f"{folder}/{name}" for name in self.images(folder, DEPTH)])

    def are_drawn(self, images: Sequence[str], most: int = 3) -> bool | None:
        """Whether the first of the images are drawn in few values, as masks are; None where none can be read."""
        seen = []
        for name in images[:most]:
            try:
                seen.append(looks_drawn(load_image(self.root / name)))
            except ImageError:
                continue
        return all(seen) if seen else None


def sample(folder: Listing, name: str, kind: str = "", mask: str = "", split: SplitName = "") -> Sample:
    """`kind` is "good", a defect type, or "" where the image is unlabelled."""
    item = re.fullmatch(r"(.+)_Part[0-9]+", stem(name).rpartition("/")[2])  # KolektorSDD: several views of one item
    return Sample(
        path=folder.root / name,
        name=name,
        label=None if not kind else "good" if kind == "good" else "anomaly",
        defect="" if kind == "good" else kind,
        mask=folder.root / mask if mask else None,
        split=split,
        group=item[1] if item else "",
    )


def stem(name: str) -> str:
    """Without its ending, which listed images have; pathlib is slow."""
    return name.rpartition(".")[0]


def counts(samples: list[Sample], left: Iterable[Reason] = ()) -> str:
    """In words, how many images of which label and how many masks."""
    good = sum(sample.label == "good" for sample in samples)
    masks = len({sample.mask for sample in samples if sample.mask})
    reasons = list(left)
    unused = sum(reasons.count(reason) for reason in ("mask-of-good", "mask-unused", "mask-ambiguous"))
    beside = f" ({unused} files beside them belong to no image)" if unused else ""
    return f"{good} good, {len(samples) - good} defective, {masks} masks{beside}"


def one_and(names: Iterable[str]) -> str:
    """A, B and C; at most ten."""
    return enumerated(names, "and")


def enumerated(names: Iterable[str], word: str) -> str:
    """As `one_and`, with another word."""
    listed = list(names)
    if len(listed) > 10:
        listed = [*listed[:9], f"{len(listed) - 9} more"]
    return listed[0] if len(listed) == 1 else f"{', '.join(listed[:-1])} {word} {listed[-1]}"

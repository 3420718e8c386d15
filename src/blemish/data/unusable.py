"""Why so few images are left: how many of a folder cannot be read, are too large, are copies of others, or have formats
that are not read."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from blemish.data.audit import Audit
from blemish.data.layouts import Dataset
from blemish.images import MAX_PIXELS, ImageError, read_size
from blemish.listing import other_formats
from blemish.types import TooFewError


def unusable(folder: Path, dataset: Dataset, checked: Audit) -> str:
    """In words, for a refusal, with what is left; "" where all images of the `dataset` in `folder` can be used, no two
    show the same, and none has a format that is not read.

    Raises `TooFewError` where none can be used.
    """
    names = {name for problem in checked.problems if problem.kind == "unreadable" for name in problem.names}
    paths = [sample.path for sample in dataset.samples if sample.name in names]
    large = sum(map(_too_large, paths))
    count = len(dataset.samples)
    reasons = []
    if broken := len(paths) - large:
        reasons.append(f"{broken} cannot be read")
    if large:
        reasons.append(f"{large} {'has' if large == 1 else 'have'} more than {MAX_PIXELS:,} pixels")
    if paths and len(paths) == count:
        remedy = "make them smaller" if large == count else "write or copy them again"
        raise TooFewError(
            f"None of the {count} images in {folder} can be used: {_listed(reasons)}; {remedy}, and see "
            f"blemish data {folder}."
        )
    if copies := sum(len(group) - 1 for group in checked.groups):
        reasons.append(f"{copies} {'shows' if copies == 1 else 'show'} the same as another, which counts once")
    said = [f"of the {count} images in {folder} {_listed(reasons)}"] if reasons else []
    if formats := other_formats(dataset.left_out):
        said.append(f"images in formats that are not read: {formats}")
    return f"{'; '.join(said)}: see blemish data {folder}" if said else ""


@contextmanager
def explained(why: str) -> Iterator[None]:
    """Adds to a refusal for too few images why they are few, in the words of `unusable`."""
    try:
        yield
    except TooFewError as refusal:
        if not why:
            raise
        raise TooFewError(f"{str(refusal).removesuffix('.')} ({why}).") from None


def _listed(reasons: list[str]) -> str:
    return " and ".join([", ".join(reasons[:-1]), reasons[-1]] if len(reasons) > 1 else reasons)


def _too_large(path: Path) -> bool:
    try:
        width, height = read_size(path)
    except ImageError:
        return False
    return width * height > MAX_PIXELS

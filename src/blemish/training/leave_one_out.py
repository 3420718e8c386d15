"""Leave-one-out predictions of whole training images: calibration without held-out images.

The detector says what its training samples look like without their own items (`detectors.interface.LeavesOneOut`).
Where these are framed images or tiles, they are put together here as inference puts them together.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from blemish.detectors.interface import LeavesOneOut
from blemish.training.export import Pixels, predict
from blemish.training.framing import Seen
from blemish.types import BlemishError, Prediction, Progress, Sample, silent


def leave_one_out(
    detector: LeavesOneOut,
    images: Sequence[Sample],
    progress: Progress = silent,
    *,
    seen: Seen | None = None,
    samples: Mapping[str, Sequence[Sample]] | None = None,
) -> Prediction:
    """Predictions of the fitted `detector` on its training `images`, each as if its item had never been seen. With a
    frame (`seen`), `samples` are the framed images or tiles that the detector learned from, by image name.

    Raises `BlemishError` if all images show one item, `ValueError` if `images` are not the training images, and
    `RuntimeError` before `fit`.
    """
    learned = detector.sources().samples
    index_of = {sample.name: index for index, sample in enumerate(learned)}
    names = [sample.name for image in images for sample in (samples[image.name] if samples else [image])]
    if sorted(names) != sorted(index_of):
        raise ValueError("expected the images that the detector was fitted on, all of them")
    if len({sample.item for sample in learned}) < 2:
        raise BlemishError(
            f"All {len(images)} good images are of one item, so nothing is left to compare them with; "
            "add images of other items, or hold some out."
        )
    left_out, following = detector.left_out(progress), iter(names)

    def known(_: Pixels) -> Prediction:
        """In place of a graph: what is known of the next sample."""
        return left_out(index_of[next(following)])

    run = seen.framing.wrap(known, batch=1) if seen and seen.framing else known
    return predict(run, images, progress, "put together")

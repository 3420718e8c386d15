"""Leave-one-out scores of the training images: calibration without held-out images.

Each image is judged by the detector without the patches of its own item (`detectors.interface.LeavesOneOut`), in
onnxruntime and with the nearest-neighbour search that inference uses.

This is not exactly the detector that would have been trained without the item, because the coreset was chosen with it:
if one of the item's patches was kept, similar patches of other items were not, and leaving it out leaves a gap. So the
scores, and the threshold that they set, tend to be too high rather than too low.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from blemish.detectors.interface import LeavesOneOut
from blemish.inference.bundle import MODEL
from blemish.inference.inspector import open_session
from blemish.training.export import Pixels, export, predict
from blemish.training.framing import Seen
from blemish.types import BlemishError, Prediction, Progress, Sample, silent


def leave_one_out(
    detector: LeavesOneOut,
    images: Sequence[Sample],
    items: Sequence[str],
    progress: Progress = silent,
    *,
    seen: Seen | None = None,
    samples: Mapping[str, Sequence[Sample]] | None = None,
) -> Prediction:
    """Predictions of the fitted `detector` on its training `images`, each without its own item.

    `items` names the item of each image, as for `calibration.item_weights` ("" = an item of its own). With a frame
    (`seen`), `samples` are the framed images or tiles that the detector learned from, by image name; those of the same
    item are left out together. `neighbours` in the result are indices into the whole memory bank.

    Raises `BlemishError` if all images show one item, `ValueError` if `images` are not the training images, and
    `RuntimeError` before `fit`.
    """
    sources = detector.sources()
    item_of = {s.name: ("item", item) if item else ("", s.name) for s, item in zip(images, items, strict=True)}
    image_of = {image: image for image in item_of}  # by the name of a training sample
    if samples is not None:
        image_of = {sample.name: image for image in item_of for sample in samples[image]}
    if set(image_of) != set(sources.names):
        raise ValueError("expected the images that the detector was fitted on, all of them")
    number_of = {item: number for number, item in enumerate(sorted(set(item_of.values())))}
    if len(number_of) < 2:
        raise BlemishError(
            f"All {len(images)} good images are of one item, so nothing is left to compare them with; "
            "add images of other items, or hold some out."
        )
    item_numbers = np.array([number_of[item_of[image_of[name]]] for name in sources.names])
    graph = detector.without(item_numbers[sources.table[:, 0]].tolist())
    with tempfile.TemporaryDirectory(prefix="blemish-") as folder:
        export(graph, Path(folder) / MODEL, dict(zip(graph.inputs, graph.left_out(0), strict=True)))
        session = open_session((Path(folder) / MODEL).read_bytes())
    next_image, feed = iter(images), dict[str, np.ndarray]()

    def in_onnxruntime(pixels: Pixels) -> Prediction:
        outputs = session.run(list(graph.outputs), {"images": pixels, **feed})
        return Prediction.named(dict(zip(graph.outputs, outputs, strict=True)))

    run = seen.framing.wrap(in_onnxruntime, batch=1) if seen and seen.framing else in_onnxruntime

    def without_own(pixels: Pixels) -> Prediction:
        left_out = graph.left_out(number_of[item_of[next(next_image).name]])
        feed.update(zip(graph.inputs, (tensor.numpy() for tensor in left_out), strict=True))
        return run(pixels)

    return predict(without_own, images, progress, "leave one out")

"""Scores of the very images that were learned from, as if each one's item had not: calibration without holding out.

Each image is judged by the detector without its own item (`detectors.interface.LeavesOneOut`), in onnxruntime and
with the search that inference uses.

It is not quite the detector that would have been learned without the item: the coreset was chosen with it. Where one of
its patches was kept, similar patches of other items were not, and masking it leaves a hole. So these scores are rather
too high than too low, and a threshold made from them is rather too high.
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
    """What the fitted `detector` says of the `images` that it learned from, each without its own item.

    `items` names each one's item, as for `calibration.item_weights` ("" = an item of its own). Where it learned from
    what a frame made of them (`seen`), `samples` are those by the images' names, and all of an item's are left out.
    `neighbours` in the result count in the whole memory bank. Raises `BlemishError` where all images are of one item,
    `ValueError` where `images` are not those that were learned from, and `RuntimeError` before `fit`.
    """
    sources = detector.sources()
    of_image = {s.name: ("item", item) if item else ("", s.name) for s, item in zip(images, items, strict=True)}
    of_sample = {image: image for image in of_image}
    if samples is not None:
        of_sample = {sample.name: image for image in of_image for sample in samples[image]}
    if set(of_sample) != set(sources.names):
        raise ValueError("expected the images that the detector was fitted on, all of them")
    number = {item: place for place, item in enumerate(sorted(set(of_image.values())))}
    if len(number) < 2:
        raise BlemishError(
            f"All {len(images)} good images are of one item, so without it nothing would be left to compare with; "
            "add images of other items, or hold some out."
        )
    of_source = np.array([number[of_image[of_sample[name]]] for name in sources.names])
    graph = detector.without(of_source[sources.table[:, 0]].tolist())
    with tempfile.TemporaryDirectory(prefix="blemish-") as folder:
        export(graph, Path(folder) / MODEL, dict(zip(graph.inputs, graph.left_out(0), strict=True)))
        session = open_session((Path(folder) / MODEL).read_bytes())
    turn, feed = iter(images), dict[str, np.ndarray]()

    def in_onnxruntime(pixels: Pixels) -> Prediction:
        outputs = session.run(list(graph.outputs), {"images": pixels, **feed})
        return Prediction.named(dict(zip(graph.outputs, outputs, strict=True)))

    run = seen.over(in_onnxruntime) if seen else in_onnxruntime

    def without_own(pixels: Pixels) -> Prediction:
        left_out = graph.left_out(number[of_image[next(turn).name]])
        feed.update(zip(graph.inputs, (tensor.numpy() for tensor in left_out), strict=True))
        return run(pixels)

    return predict(without_own, images, progress, "leave one out")

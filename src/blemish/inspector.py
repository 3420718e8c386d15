"""Bundle + picture -> verdict: the product's core. Needs onnxruntime, numpy and Pillow, and no PyTorch.

from blemish import Inspector
inspector = Inspector("run/bundle")
print(inspector.inspect("part.png"))
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import onnxruntime

from blemish import bundle, calibration, images
from blemish.frame import AlignError, Framing
from blemish.regions import find_regions, single_box
from blemish.types import BlemishError, Region, Verdict


class Look(NamedTuple):
    """A verdict with what it was made from; picture and map are None where the file could not be read, `repaired` where
    the detector is no autoencoder, `neighbours` and `distances` where the bundle is older than they are,
    `probabilities` where the detector is no classifier, and `pose` where the picture was not aligned. Neighbours and
    distances are those of the picture as it was brought before the detector, see `frame.Framing`, or of its tiles."""

    verdict: Verdict
    picture: npt.NDArray[np.uint8] | None  # (H, W, 3)
    map: npt.NDArray[np.float32] | None  # (h, w)
    repaired: npt.NDArray[np.uint8] | None = None  # (h, w, 3): how it would look if it were good
    neighbours: npt.NDArray[np.int32] | None = None  # (gh, gw) or (tiles, gh, gw): the nearest normal patches
    distances: npt.NDArray[np.float32] | None = None  # the same: how far each is
    probabilities: npt.NDArray[np.float32] | None = None  # (classes,): good first
    pose: npt.NDArray[np.float64] | None = None  # (2, 3)


def open_session(model: bytes, threads: int = 0) -> onnxruntime.InferenceSession:
    """The graph, ready to run on the CPU with `threads` threads (0 = one for each core)."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def chance(rule: bundle.Decision, of: Literal["scores", "peaks", "distances"], value: float) -> float | None:
    """The p-value of a value among those of the card's good pictures, see `calibration.p_values`; None where no good
    picture was kept from learning."""
    good = getattr(rule, of)
    if not rule.scores or not good:
        return None
    weights = calibration.item_weights([str(item) for item in rule.items]) if rule.items else None
    return float(calibration.p_values(np.array(good), np.array([value]), weights)[0])


class Inspector:
    """Runs a bundle. `threads` is onnxruntime's (0 = one for each core); pictures above `max_pixels` are refused.

    Raises `BundleError` for a missing, damaged or foreign bundle, and `BlemishError` where it aligns pictures and
    OpenCV is not installed.
    """

    def __init__(self, path: Path | str, *, threads: int = 0, max_pixels: int = images.MAX_PIXELS) -> None:
        loaded = bundle.read(path)
        self.card = loaded.card
        self.evidence = loaded.evidence  # evidence.zip, see `evidence.open_memory`
        self.framing = Framing.of(loaded)  # None: pictures go to the graph as they are
        self.max_pixels = max_pixels
        try:
            self._session = open_session(loaded.model, threads)
        except Exception as cause:  # onnxruntime has no common base for its errors
            raise bundle.BundleError(
                f"{path}: onnxruntime cannot load the graph ({cause}); update onnxruntime."
            ) from None

    @property
    def paints(self) -> bool:
        """Whether it is an autoencoder's, with a repaired picture among its `outputs`."""
        return "repaired" in [output.name for output in self._session.get_outputs()]

    def predict(self, picture: npt.NDArray[np.uint8]) -> tuple[float, npt.NDArray[np.float32]]:
        """uint8 RGB `(H, W, 3)` of any size -> raw score and float32 anomaly map `(h, w)` of the card's image size, or
        of its frame's map size. Raises `AlignError` for a picture that cannot be aligned as the card asks."""
        found = self.outputs(picture)
        return float(found["scores"]), found["maps"]

    def outputs(self, picture: npt.NDArray[np.uint8]) -> dict[str, npt.NDArray[Any]]:
        """Everything that the graph says of a picture, by name: `scores` (), `maps` (h, w), of a classifier
        `probabilities` (classes,) and, if it learned types, `class_maps` (classes - 1, h, w): log-odds against good; of
        an autoencoder `repaired`, uint8 (h, w, 3). For each cell of the feature grid `neighbours`, int32 (gh, gw), an
        index into the bank of normal patches, and `distances`, float32 (gh, gw), how far that is; bundles that older
        versions wrote have neither. With a frame they are of its tiles, (tiles, gh, gw), and of an aligned picture
        there is `poses` (2, 3). Raises `AlignError`."""
        run = self.framing.over(self._run) if self.framing else self._run
        return {name: value[0] for name, value in run(picture[None]).items()}

    def _run(self, pictures: npt.NDArray[np.uint8]) -> dict[str, npt.NDArray[Any]]:
        names = [output.name for output in self._session.get_outputs()]
        return dict(zip(names, self._session.run(names, {"pictures": pictures}), strict=True))

    def judge(
        self,
        path: Path | str,
        size: tuple[int, int],
        score: float,
        anomaly_map: npt.NDArray[np.float32],
        probabilities: npt.NDArray[np.float32] | None = None,
    ) -> Verdict:
        """Turns a raw score and map into a verdict by the card's thresholds; `size` is (width, height)."""
        rule, classes = self.card.decision, self.card.classes
        found = score > rule.threshold
        doubtful = not found and rule.review_threshold is not None and score > rule.review_threshold
        regions: tuple[Region, ...] = ()
        if (found or doubtful) and rule.boxes == "one":
            regions = single_box(anomaly_map, size)
        elif found or doubtful:
            # A classifier's score is its map's mean: no single pixel need be above the limit, yet it looked somewhere.
            regions = find_regions(
                anomaly_map,
                rule.pixel_threshold,
                size,
                usual=rule.usual,
                min_area=rule.min_area,
                always=bool(classes),
            )
        regions = tuple(replace(region, p_value=chance(rule, "peaks", region.peak)) for region in regions)
        named = found and len(classes) > 2 and probabilities is not None
        return Verdict(
            path=str(path),
            decision="anomaly" if found else "review" if doubtful else "good",
            score=score,
            threshold=rule.threshold,
            p_value=chance(rule, "scores", score),
            size=size,
            regions=regions,
            probability=None if probabilities is None else float(1 - probabilities[0]),
            defect=classes[1 + int(np.argmax(probabilities[1:]))] if named and probabilities is not None else "",
        )

    def inspect(self, path: Path | str) -> Verdict:
        """One picture file -> verdict. A file that cannot be read, or a picture that cannot be aligned, is a verdict
        too: "error", with the reason."""
        return self.look(path).verdict

    def look(self, path: Path | str) -> Look:
        """Like `inspect`, with the picture and its map."""
        try:
            picture = images.load(path, max_pixels=self.max_pixels)
        except BlemishError as cause:
            return Look(Verdict(path=str(path), decision="error", error=str(cause)), None, None)
        return self._look(path, picture)

    def look_many(self, paths: Iterable[Path | str]) -> Iterator[Look]:
        """Like `look` for each path, in order; the next files are decoded while the present one is inspected."""

        def read(path: Path | str) -> npt.NDArray[np.uint8] | BlemishError:
            try:
                return images.load(path, max_pixels=self.max_pixels)
            except BlemishError as cause:
                return cause

        waiting = iter(paths)
        with ThreadPoolExecutor(1) as pool:
            ahead: list[tuple[Path | str, Future[npt.NDArray[np.uint8] | BlemishError]]]
            ahead = [(path, pool.submit(read, path)) for path in islice(waiting, 2)]
            while ahead:
                path, future = ahead.pop(0)
                picture = future.result()
                ahead += [(more, pool.submit(read, more)) for more in islice(waiting, 1)]
                if isinstance(picture, BlemishError):
                    yield Look(Verdict(path=str(path), decision="error", error=str(picture)), None, None)
                else:
                    yield self._look(path, picture)

    def _look(self, path: Path | str, picture: npt.NDArray[np.uint8]) -> Look:
        try:
            found = self.outputs(picture)
        except AlignError as cause:
            return Look(Verdict(path=str(path), decision="error", error=f"{path}: {cause}"), None, None)
        size = (picture.shape[1], picture.shape[0])
        verdict = self.judge(path, size, float(found["scores"]), found["maps"], found.get("probabilities"))
        more = (found.get(name) for name in ("repaired", "neighbours", "distances", "probabilities", "poses"))
        return Look(verdict, picture, found["maps"], *more)

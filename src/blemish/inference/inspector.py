"""Bundle + picture -> verdict: the product's core. Needs onnxruntime, numpy and Pillow, and no PyTorch.

from blemish import Inspector
inspector = Inspector("run/bundle")
print(inspector.inspect("part.png"))
"""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from functools import cached_property, lru_cache
from itertools import islice
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt
import onnxruntime

from blemish import images
from blemish.inference import bundle, calibration
from blemish.inference.framing import AlignError, Framing
from blemish.inference.regions import find_regions, single_box
from blemish.types import BlemishError, Region, Verdict

S = TypeVar("S")
T = TypeVar("T")


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


def open_session(model: bytes, threads: int = 0, device: str = "cpu") -> onnxruntime.InferenceSession:
    """The graph, ready to run with `threads` threads (0 = one for each core); with "cuda", there as far as it can."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    cuda = ["CUDAExecutionProvider"] if device == "cuda" else []
    return onnxruntime.InferenceSession(model, options, providers=[*cuda, "CPUExecutionProvider"])


def cores() -> int:
    """The processor's cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def chance(rule: bundle.Decision, of: Literal["scores", "peaks", "distances"], value: float) -> float | None:
    """The p-value of a value among those of the card's good pictures, see `calibration.p_values`; None where no good
    picture was kept from learning."""
    good = getattr(rule, of)
    if not rule.scores or not good:
        return None
    return float(calibration.p_values(np.array(good), np.array([value]), shares(rule.items))[0])


@lru_cache(maxsize=8)
def shares(items: tuple[int, ...]) -> npt.NDArray[np.float64] | None:
    """`calibration.item_weights` of a card's items, the same for every picture."""
    return calibration.item_weights([str(item) for item in items]) if items else None


class Inspector:
    """Runs a bundle on `device`, "cpu" or "cuda", with `threads` of the processor (0 = one for each core); pictures
    above `max_pixels` are refused. May be used by several threads at once.

    Raises `BundleError` for a missing, damaged or foreign bundle, and `BlemishError` where it aligns pictures and
    OpenCV is not installed, or where onnxruntime has no CUDA.
    """

    def __init__(
        self, path: Path | str, *, threads: int = 0, max_pixels: int = images.MAX_PIXELS, device: str = "cpu"
    ) -> None:
        if device not in ("cpu", "cuda"):
            raise BlemishError(f"there is no device '{device}'; choose cpu or cuda.")
        if device == "cuda" and "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
            raise BlemishError(
                "this onnxruntime has no CUDA; run `pip uninstall onnxruntime`, `pip install onnxruntime-gpu`, or use "
                "--device cpu."
            )
        loaded = bundle.read(path)
        self.card = loaded.card
        self.evidence = loaded.evidence  # evidence.zip, see `evidence.open_memory`
        self.framing = Framing.of(loaded)  # None: pictures go to the graph as they are
        self.max_pixels = max_pixels
        self._model, self._device = loaded.model, device
        self._workers = threads or cores()
        self._own = threading.local()  # a worker's session, see `each`
        try:
            self._session = open_session(loaded.model, threads, device)
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
        session = getattr(self._own, "session", self._session)
        names = [output.name for output in session.get_outputs()]
        return dict(zip(names, session.run(names, {"pictures": pictures}), strict=True))

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
        try:
            found = self.outputs(picture)
        except AlignError as cause:
            return Look(Verdict(path=str(path), decision="error", error=f"{path}: {cause}"), None, None)
        size = (picture.shape[1], picture.shape[0])
        verdict = self.judge(path, size, float(found["scores"]), found["maps"], found.get("probabilities"))
        more = (found.get(name) for name in ("repaired", "neighbours", "distances", "probabilities", "poses"))
        return Look(verdict, picture, found["maps"], *more)

    def look_many(self, paths: Iterable[Path | str]) -> Iterator[Look]:
        """Like `look` for each path, in order; several at a time."""
        return self.each(((path, None) for path in paths), lambda look, _: look)

    def each(self, items: Iterable[tuple[Path | str, S]], do: Callable[[Look, S], T]) -> Iterator[T]:
        """Looks at the picture of each item, (path, anything), and gives what `do` makes of the look and that, in the
        order of the items. At most two items a thread are taken ahead of what has been given.

        The first picture gets all threads. Of more, each thread works on a picture of its own, from the file to what
        `do` makes of it, which must therefore bear being called by several threads: no thread waits for another
        within a picture, which is what limits one picture on many cores.
        """
        waiting = iter(items)
        for path, what in islice(waiting, 1):
            yield do(self.look(path), what)
        following = next(waiting, None)
        if following is None:
            return
        ahead: deque[Future[T]] = deque()
        with ThreadPoolExecutor(self._workers, initializer=self._begin, initargs=(self._for_workers,)) as pool:

            def work(path: Path | str, what: S) -> T:
                return do(self.look(path), what)

            try:
                ahead.append(pool.submit(work, *following))
                ahead.extend(pool.submit(work, *item) for item in islice(waiting, 2 * self._workers - 1))
                while ahead:
                    yield ahead.popleft().result()
                    ahead.extend(pool.submit(work, *item) for item in islice(waiting, 1))
            finally:
                pool.shutdown(cancel_futures=True)

    @cached_property
    def _for_workers(self) -> onnxruntime.InferenceSession:
        """One session for all workers, which runs in the thread that calls it."""
        if self._workers == 1 or self._device != "cpu":
            return self._session
        return open_session(self._model, 1)

    def _begin(self, session: onnxruntime.InferenceSession) -> None:
        self._own.session = session

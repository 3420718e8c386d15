"""Bundle + image -> verdict: the product's core. Needs onnxruntime, numpy and Pillow, and no PyTorch.

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
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from itertools import chain, islice
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
import numpy.typing as npt
import onnxruntime

from blemish.decoding import budget, take, turn
from blemish.images import MAX_PIXELS, load_image
from blemish.inference import bundle, calibration
from blemish.inference.bundle_files import shown
from blemish.inference.framing import AlignError, Framing
from blemish.inference.graph_check import (
    GraphError,
    check_file,
    check_finite,
    check_outputs,
    check_session,
    names_asked,
)
from blemish.inference.regions import find_regions, single_box
from blemish.inference.time_limit import SECONDS, time_limit
from blemish.types import BlemishError, Decision, Prediction, Region, Verdict

SILENT = 4  # onnxruntime's log: what it says of errors is in our sentences
MOST_THREADS = 64  # or the processor's cores, if these are more: each holds an image and its maps
LOADING = 300.0  # seconds, after which onnxruntime gives up preparing a graph

S = TypeVar("S")
T = TypeVar("T")


@dataclass(frozen=True)
class Inspection:
    """A verdict with the image and the prediction that it was made from, both None where the image could not be read or
    aligned.

    The properties are the prediction's fields without the batch axis, None where the detector has no such output.
    Neighbours and distances are of the image as the detector saw it, see `framing.Framing`, or of its tiles. In a
    notebook an inspection shows the image with heat and boxes.
    """

    verdict: Verdict
    image: npt.NDArray[np.uint8] | None = None  # (H, W, 3)
    prediction: Prediction | None = None  # of one image
    color_range: tuple[float, float] = (0.0, 1.0)  # of the bundle's card: map values drawn transparent and brightest
    cause: BlemishError | None = None  # of an error verdict; its `__cause__` tells a broken image from a broken machine

    @property
    def map(self) -> npt.NDArray[np.float32] | None:
        """The anomaly map (h, w)."""
        return None if self.prediction is None else self.prediction.maps[0]

    @property
    def reconstruction(self) -> npt.NDArray[np.uint8] | None:
        """What an autoencoder made of the image (h, w, 3)."""
        return self._first("reconstruction")

    @property
    def neighbours(self) -> npt.NDArray[np.int32] | None:
        """Entries of the memory bank, (gh, gw) or (tiles, gh, gw)."""
        return self._first("neighbours")

    @property
    def distances(self) -> npt.NDArray[np.float32] | None:
        """To these entries, of the same shape."""
        return self._first("distances")

    @property
    def pose(self) -> npt.NDArray[np.float64] | None:
        """How the image was aligned (2, 3), see alignment.py."""
        return self._first("poses")

    def _first(self, name: str) -> npt.NDArray[Any] | None:
        rows: npt.NDArray[Any] | None = getattr(self.prediction, name, None)
        return None if rows is None else rows[0]

    def _repr_png_(self) -> bytes | None:
        if self.image is None or self.map is None:
            return None
        from blemish.inference.overlay import overlay, png

        low, high = self.color_range
        return png(overlay(self.image, self.map, self.verdict.regions, low=low, high=high))


def open_session(model: bytes, threads: int = 0, device: str = "cpu") -> onnxruntime.InferenceSession:
    """The graph, ready to run with `threads` threads (0 = one for each core); with "cuda", on the GPU as far as
    possible. Raises what onnxruntime does."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = SILENT
    # Not its own format, which `graph_check` does not read.
    options.add_session_config_entry("session.load_model_format", "ONNX")
    cuda = ["CUDAExecutionProvider"] if device == "cuda" else []
    with time_limit(LOADING, lambda: options.set_load_cancellation_flag(True)):
        providers = [*cuda, "CPUExecutionProvider"]
        # On the CPU there is nothing to fall back to, and it would say on standard output that it tries.
        return onnxruntime.InferenceSession(model, options, providers=providers, enable_fallback=len(cuda))


def checked_session(
    loaded: bundle.Bundle, threads: int = 0, device: str = "cpu", session: onnxruntime.InferenceSession | None = None
) -> onnxruntime.InferenceSession:
    """The session of a bundle, or a given one of its graph. Raises `BundleError` for a graph that is not of its card,
    takes weights from elsewhere, or cannot be loaded."""
    check_file(loaded.model, loaded.path)
    try:
        session = session or open_session(loaded.model, threads, device)
    except Exception as cause:  # onnxruntime has no common base for its errors
        raise bundle.BundleError(
            f"{loaded.path}: onnxruntime cannot load the graph ({shown(str(cause))}); update onnxruntime."
        ) from None
    check_session(session, loaded.card, loaded.path)
    return session


def _failed(path: str, cause: BlemishError) -> Verdict:
    return Verdict(path=path, decision="error", error=f"{path or 'the image'}: {cause}")


def cores() -> int:
    """The processor's cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def p_value_of(rule: bundle.Decision, of: Literal["scores", "map_maxima", "distances"], value: float) -> float | None:
    """The p-value of a value among those of the calibration images, see `calibration.p_values`; None where the bundle
    has none."""
    good = getattr(rule, of)
    if not rule.scores or not good:
        return None
    return float(calibration.p_values(np.array(good), np.array([value]), _item_weights(rule.items))[0])


@lru_cache(maxsize=8)
def _item_weights(items: tuple[int, ...]) -> npt.NDArray[np.float64] | None:
    """`calibration.item_weights` of a card's items, which are the same for every image."""
    return calibration.item_weights([str(item) for item in items]) if items else None


class Inspector:
    """Runs a bundle, given by its path or loaded (with its `session` where one is open), on `device`, "cpu" or "cuda",
    with `threads` processor threads (0 = one for each core; at most 64, or the cores); images with more than
    `max_pixels` are refused. A run of the graph, on an image or on four of its tiles, is ended after `timeout` seconds,
    and the verdict is then an error. One inspector may be used by several threads at once.

    Raises `BundleError` for a missing, damaged or foreign bundle, and `BlemishError` where it aligns images and
    OpenCV is not installed, or where onnxruntime has no CUDA.
    """

    def __init__(
        self,
        path: Path | str | bundle.Bundle,
        *,
        threads: int = 0,
        max_pixels: int = MAX_PIXELS,
        timeout: float = SECONDS,
        device: str = "cpu",
        session: onnxruntime.InferenceSession | None = None,
    ) -> None:
        if not 0 < timeout <= threading.TIMEOUT_MAX:
            raise BlemishError(f"a time limit of {timeout:g} s is none; give a number of seconds above 0.")
        if device not in ("cpu", "cuda"):
            raise BlemishError(f"there is no device '{device}'; choose cpu or cuda.")
        threads = min(threads, max(MOST_THREADS, cores()))
        if device == "cuda" and "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
            raise BlemishError(
                "this onnxruntime has no CUDA; run `pip uninstall onnxruntime`, `pip install onnxruntime-gpu`, or use "
                "--device cpu."
            )
        loaded = path if isinstance(path, bundle.Bundle) else bundle.read(path)
        self.card = loaded.card
        self.evidence = loaded.evidence  # the bytes of evidence.zip, see `evidence.open_store`
        self.framing = Framing.of(loaded)  # None: images go to the graph as they are
        self.max_pixels, self.timeout = max_pixels, timeout
        self._model, self._device = loaded.model, device
        self._workers, self._given = threads or cores(), session is not None
        self._in_thread = threading.local()  # `session`, in the workers of `each`
        self._session = checked_session(loaded, threads, device, session)
        self._largest = 0  # bytes of an image so far
        self._asked, self._input = names_asked(self._session), self._session.get_inputs()[0].name

    def __repr__(self) -> str:
        card, rule = self.card, self.card.decision
        rate = "no guarantee" if rule.false_alarms is None else f"at most {rule.false_alarms:.3g} false alarms"
        height, width = card.image_size
        return f"Inspector({card.product}, {card.detector}, {height}x{width}, threshold {rule.threshold:.4g}, {rate})"

    @property
    def reconstructs(self) -> bool:
        """Whether the detector is an autoencoder, with a reconstruction among its outputs."""
        return "reconstruction" in self._asked.values()

    def predict(self, image: npt.NDArray[np.uint8]) -> Prediction:
        """uint8 RGB `(H, W, 3)` of any size -> the `Prediction` of one image: the raw score, the map, of the card's
        image size or its frame's map size, and what else the detector has. Bundles of older versions have neither
        neighbours nor distances. Raises `AlignError` for an image that cannot be aligned as the card asks, `GraphError`
        where the graph fails or its numbers are none, and ValueError for an array of another shape or dtype."""
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
            raise ValueError(f"expected an RGB image uint8 (H, W, 3); got {image.dtype} {image.shape}")
        if self.framing is None:
            return self._run(image[None])
        try:
            prediction = self.framing.wrap(self._run)(image[None])
        except MemoryError as cause:
            raise GraphError("there is not enough memory for it; make it smaller, or free some.") from cause
        check_finite(prediction.outputs())  # large numbers may have overflowed
        return prediction

    def reconstruct(self, image: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
        """An autoencoder's reconstruction of an image uint8 (H, W, 3), as it would look without defects: uint8
        (h, w, 3). Raises ValueError where the detector is no autoencoder."""
        reconstructions = self.predict(image).reconstruction
        if reconstructions is None:
            raise ValueError(f"{self.card.detector} reconstructs nothing")
        reconstruction: npt.NDArray[np.uint8] = reconstructions[0]
        return reconstruction

    def _run(self, images: npt.NDArray[np.uint8]) -> Prediction:
        session = getattr(self._in_thread, "session", self._session)
        options = onnxruntime.RunOptions()
        options.log_severity_level = SILENT
        try:
            with time_limit(self.timeout, lambda: setattr(options, "terminate", True)):
                values = session.run(list(self._asked), {self._input: images}, options)
        except Exception as cause:  # onnxruntime has no common base for its errors
            if options.terminate:
                raise GraphError(
                    f"the detector took longer than {self.timeout:g} s; look at the image, or raise the limit with "
                    "--timeout."
                ) from None
            raise GraphError(f"the detector cannot be run on it ({shown(str(cause))}); look at the image.") from cause
        outputs = dict(zip(self._asked.values(), values, strict=True))
        check_outputs(outputs, len(images), self.card)
        return Prediction.named(outputs)

    def judge(self, prediction: Prediction, size: tuple[int, int], path: Path | str = "") -> Verdict:
        """The verdict on one image, by the card's thresholds; `size` is the original image's (width, height). An error
        where a number is NaN or infinite, which is neither above a threshold nor below it."""
        score, rule, classes = float(prediction.scores[0]), self.card.decision, self.card.classes
        decision: Decision = "good"
        try:
            check_finite({**prediction[0].outputs(), "scores": np.array([score, rule.threshold])})
        except GraphError as cause:
            return _failed(str(path), cause)
        if score > rule.threshold:
            decision = "anomaly"
        elif rule.review_threshold is not None and score > rule.review_threshold:
            decision = "review"
        probability, defect = None, ""
        if prediction.probabilities is not None:
            probabilities = prediction.probabilities[0]
            probability = float(1 - probabilities[0])
            if decision == "anomaly" and len(classes) > 2:
                defect = classes[1 + int(np.argmax(probabilities[1:]))]
        return Verdict(
            path=str(path),
            decision=decision,
            score=score,
            threshold=rule.threshold,
            p_value=p_value_of(rule, "scores", score),
            size=size,
            regions=() if decision == "good" else self._regions(prediction.maps[0], size),
            probability=probability,
            defect=defect,
        )

    def _regions(self, anomaly_map: npt.NDArray[np.float32], size: tuple[int, int]) -> tuple[Region, ...]:
        """Of an anomaly, or of an image to be reviewed, with their p-values."""
        rule = self.card.decision
        if rule.boxes == "one":
            regions = single_box(anomaly_map, size)
        else:
            regions = find_regions(
                anomaly_map,
                rule.pixel_threshold,
                size,
                normal_median=rule.normal_median,
                min_area=rule.min_area,
                # A classifier's score is its map's mean: it may be high although no cell reaches the threshold.
                always=bool(self.card.classes),
            )
        return tuple(replace(region, p_value=p_value_of(rule, "map_maxima", region.peak)) for region in regions)

    def inspect(self, image: Path | str | bytes | npt.NDArray[np.uint8], name: str = "") -> Verdict:
        """An image file, the content of one, or an array uint8 RGB (H, W, 3) such as a camera gives -> verdict, whose
        `path` is `name` if that is given. A file that cannot be read, or an image that cannot be aligned, has a verdict
        too: "error", with the reason. Raises ValueError for an array of another shape or dtype.

        To be drawn in a notebook, the verdict keeps the array itself: it must not be overwritten until then.
        """
        return self.look(image, name).verdict.drawn_by(lambda: self.look(image, name)._repr_png_())

    def look(self, image: Path | str | bytes | npt.NDArray[np.uint8], name: str = "") -> Inspection:
        """Like `inspect`, with the image and the prediction."""
        path = name or ("" if isinstance(image, np.ndarray | bytes) else str(image))
        frame = self.card.frame.size if self.card.frame else (0, 0)
        try:
            with turn(frame[0] * frame[1]):
                if isinstance(image, np.ndarray):
                    take(image.size // 3)
                if isinstance(image, np.ndarray):
                    pixels = image
                else:
                    pixels = load_image(image, max_pixels=self.max_pixels, name=path)
                self._largest = max(self._largest, pixels.nbytes)
                prediction = self.predict(pixels)
        except (AlignError, GraphError) as cause:
            return Inspection(_failed(path, cause), cause=cause)
        except BlemishError as cause:
            return Inspection(Verdict(path=path, decision="error", error=str(cause)), cause=cause)
        verdict = self.judge(prediction, (pixels.shape[1], pixels.shape[0]), path)
        return Inspection(verdict, pixels, prediction, self.card.decision.color_range)

    def look_many(self, paths: Iterable[Path | str]) -> Iterator[Inspection]:
        """Like `look` for each path, in order; several at a time."""
        return self.each(((path, None) for path in paths), lambda inspection, _: inspection)

    def each(self, items: Iterable[tuple[Path | str, S]], do: Callable[[Inspection, S], T]) -> Iterator[T]:
        """Inspects the image of each item, (path, anything), and gives `do(inspection, anything)`, in the order of the
        items, as `in_threads` does."""

        def work(item: tuple[Path | str, S]) -> T:
            with turn():  # what is drawn of a large image takes memory too
                return do(self.look(item[0]), item[1])

        return self.in_threads(items, work)

    def in_threads(self, items: Iterable[S], do: Callable[[S], T]) -> Iterator[T]:
        """Gives `do(item)` in the order of the items, which `do` may use this inspector for. At most two items a thread
        are taken ahead of what has been given, fewer where the images are so large that those would fill the memory.

        The first item gets all threads. Of more, each thread works on an item of its own; several threads call `do` at
        once. That is faster than all threads on one image, where each has to wait for the others.
        """
        waiting = iter(items)
        for item in islice(waiting, 1):
            yield do(item)
        following = list(islice(waiting, 1))
        if not following:
            return
        ahead: deque[Future[T]] = deque()
        with ThreadPoolExecutor(self._workers, initializer=self._set_session, initargs=(self._single,)) as pool:
            try:
                for item in chain(following, islice(waiting, self._ahead() - 1)):
                    ahead.append(pool.submit(do, item))
                while ahead:
                    yield ahead.popleft().result()
                    if len(ahead) < self._ahead():  # which a larger image may have made smaller
                        ahead.extend(pool.submit(do, item) for item in islice(waiting, 1))
            finally:
                pool.shutdown(cancel_futures=True)

    def _ahead(self) -> int:
        """How many items are taken ahead: their images, as large as the largest so far, in an eighth of the memory."""
        return max(1, min(2 * self._workers, budget() // 4 // max(1, self._largest)))

    @cached_property
    def _single(self) -> onnxruntime.InferenceSession:
        """A session for all workers of `in_threads`, which computes in the thread that calls it; the one that was
        given, where one was."""
        if self._given or self._workers == 1 or self._device != "cpu":
            return self._session
        return open_session(self._model, 1)

    def _set_session(self, session: onnxruntime.InferenceSession) -> None:
        self._in_thread.session = session

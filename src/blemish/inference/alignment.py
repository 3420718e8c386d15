"""Where a part lies in its image: the shift and rotation that lay the image on a reference image of a good part.

A coarse search turns the image in steps and slides the middle of the reference over it; the best places are refined
by maximising the enhanced correlation coefficient (Evangelidis & Psarakis 2008) with OpenCV. Both compare edges, not
brightness: what is left when a blurred copy is subtracted.

A *pose* is float64 `(2, 3)`: the aligned image's pixel (x, y) is the image's pixel `pose @ (x, y, 1)`, where whole
numbers are the centres of pixels.
"""

from __future__ import annotations

from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
from PIL import Image

from blemish.inference.resizing import resized, size_of
from blemish.types import BlemishError

SIDE = 512  # longest side of the reference, in pixels
COARSE, MIDDLE = 128, 256  # longest sides at which it is searched and first refined
TURN, STEP = 32, 4  # degrees that a part may be turned either way, and between those that are tried
SHIFT = 0.2  # of width and height that it may be shifted either way
STARTS = 3  # places that are refined

V = TypeVar("V", np.uint8, np.float32)
Floats = npt.NDArray[np.float32]
Pixels = npt.NDArray[np.uint8]
Pose = npt.NDArray[np.float64]


def opencv() -> Any:
    """The module. Raises `BlemishError` where it is not installed."""
    try:
        import cv2
    except ModuleNotFoundError:
        raise BlemishError(
            "Aligning images needs OpenCV, which the base install leaves out; run: pip install 'blemish[align]'."
        ) from None
    return cv2


def reference_of(image: Pixels) -> Pixels:
    """The image (H, W, 3), reduced so that no side is longer than `SIDE`."""
    return resized(image, _scaled(image, min(1.0, SIDE / max(image.shape[:2]))))


def find_pose(image: Pixels, reference: Pixels) -> tuple[Pose, float]:
    """The pose of an image uint8 (H, W, 3) with the same aspect as the reference (h, w, 3), and their correlation.

    The correlation, -1 to 1, is -1 where nothing was found, or a part that is turned or shifted by more than `TURN` or
    `SHIFT`.
    """
    full = size_of(reference)
    image_edges, reference_edges = (_edges(_grey(pixels, full)) for pixels in (image, reference))
    coarse, middle = (min(1.0, longest / max(full)) for longest in (COARSE, MIDDLE))
    small_image, small_reference = (_reduced(edges, coarse) for edges in (image_edges, reference_edges))
    starts = [_rescaled(pose, size_of(small_image), full) for pose in _search(small_image, small_reference)]

    small_image, small_reference = (_reduced(edges, middle) for edges in (image_edges, reference_edges))
    starts = [_rescaled(start, full, size_of(small_image)) for start in starts]
    refined = [_refined(small_image, small_reference, start) for start in starts]
    pose, correlation = max(refined, key=lambda pose_and_correlation: pose_and_correlation[1])
    if middle < 1 and correlation > -1:
        start = _rescaled(pose, size_of(small_image), full)
        pose, correlation = _refined(image_edges, reference_edges, start)
    if _beyond_reach(pose, full):
        correlation = -1.0
    return _rescaled(pose, full, size_of(image)), float(correlation)


def aligned(image: Pixels, pose: Pose, filling: Pixels | None = None) -> Pixels:
    """The image (H, W, 3) as the reference lies. What it does not show is taken from `filling`, the reference at the
    image's size, made as bright as the image is elsewhere; without a filling the edge is repeated."""
    moved = warped(image, pose)
    shown = _warp(np.full(image.shape[:2], 255, np.uint8), pose, inverse=True) == 255
    if filling is None or shown.all() or not shown.any():
        return moved
    gain = moved[shown].mean(0, dtype=np.float64) / np.maximum(filling[shown].mean(0, dtype=np.float64), 1)
    moved[~shown] = np.clip(np.round(filling[~shown] * gain), 0, 255).astype(np.uint8)
    return moved


def warped(values: npt.NDArray[V], pose: Pose) -> npt.NDArray[V]:
    """An image's values, (h, w) or (h, w, C), as the reference lies; the edge is repeated."""
    return np.asarray(_warp(values, pose, inverse=True, borderMode=opencv().BORDER_REPLICATE), values.dtype)


def warped_back(values: npt.NDArray[Any], pose: Pose, size: tuple[int, int], outside: float) -> npt.NDArray[Any]:
    """The inverse of `warped`: maps of an aligned image, (h, w) or (h, w, C), as the image itself lies, of the same
    shape and type. `size` is the (width, height) that the pose is of; what the aligned image does not show becomes
    `outside`."""
    of_map = _rescaled(pose, size, size_of(values))
    border = {"borderMode": opencv().BORDER_CONSTANT, "borderValue": (outside,) * 4}
    return np.asarray(_warp(values, of_map, inverse=False, **border), values.dtype)


def homogeneous(transform: Pose) -> Pose:
    """An affine transform (2, 3) as (3, 3), to be multiplied or inverted."""
    return np.vstack([transform, [0, 0, 1]])


def _warp(values: npt.NDArray[Any], pose: Pose, *, inverse: bool, **border: Any) -> npt.NDArray[Any]:
    """OpenCV's warpAffine: with `inverse` the pose leads from places of the result to places of `values`."""
    cv2 = opencv()
    flags = cv2.INTER_LINEAR | (cv2.WARP_INVERSE_MAP if inverse else 0)
    return np.asarray(cv2.warpAffine(values, pose, size_of(values), flags=flags, **border))


def _grey(image: Pixels, size: tuple[int, int]) -> Pixels:
    return resized(np.asarray(Image.fromarray(image).convert("L")), size)


def _edges(grey: Pixels) -> Floats:
    values = grey.astype(np.float32)
    return np.asarray(values - opencv().GaussianBlur(values, (0, 0), max(grey.shape) / 32), np.float32)


def _scaled(values: npt.NDArray[Any], factor: float) -> tuple[int, int]:
    width, height = (max(1, round(side * factor)) for side in size_of(values))
    return width, height


def _reduced(values: Floats, factor: float) -> Floats:
    return resized(values, _scaled(values, factor))


def _rescaled(pose: Pose, old: tuple[int, int], new: tuple[int, int]) -> Pose:
    """The pose of an image of the size `old` (width, height) for the same image at the size `new`."""
    across, down = new[0] / old[0], new[1] / old[1]
    # Pixel centres are at whole numbers, so what scales is the place plus a half.
    scale = np.array([[across, 0, across / 2 - 0.5], [0, down, down / 2 - 0.5], [0, 0, 1]])
    scaled: Pose = (scale @ homogeneous(pose) @ np.linalg.inv(scale))[:2]
    return scaled


def _search(image: Floats, reference: Floats) -> list[Pose]:
    """The poses, of the best `STARTS` rotations, at which the middle of the reference is most like the image."""
    cv2 = opencv()
    height, width = reference.shape
    down, across = round(SHIFT * height), round(SHIFT * width)
    template = np.ascontiguousarray(reference[down : height - down, across : width - across])
    candidates = []
    for degrees in range(-TURN, TURN + 1, STEP):
        turn = np.asarray(cv2.getRotationMatrix2D(((width - 1) / 2, (height - 1) / 2), degrees, 1.0), np.float64)
        # An image without any edge has no correlation.
        correlations = cv2.matchTemplate(warped(image, turn), template, cv2.TM_CCOEFF_NORMED)
        correlations = np.nan_to_num(correlations, posinf=-1, neginf=-1)
        y, x = np.unravel_index(int(correlations.argmax()), correlations.shape)
        shift = np.array([[1, 0, x - across], [0, 1, y - down], [0, 0, 1]])
        candidates.append((float(correlations[y, x]), (homogeneous(turn) @ shift)[:2]))
    candidates.sort(key=lambda candidate: -candidate[0])
    return [pose for _, pose in candidates[:STARTS]]


def _refined(image: Floats, reference: Floats, start: Pose) -> tuple[Pose, float]:
    """The pose near `start` with the highest correlation, and that."""
    cv2 = opencv()
    criteria = (cv2.TERM_CRITERIA_EPS | cv2.TERM_CRITERIA_COUNT, 60, 1e-5)
    try:
        correlation, pose = cv2.findTransformECC(
            reference, image, start.astype(np.float32), cv2.MOTION_EUCLIDEAN, criteria, None, 5
        )
    except cv2.error:  # it did not converge
        return start, -1.0
    return np.asarray(pose, np.float64), float(correlation)


def _beyond_reach(pose: Pose, size: tuple[int, int]) -> bool:
    """Whether a part in an image of `size` (width, height) is turned or shifted farther than is searched."""
    degrees = abs(np.degrees(np.arctan2(pose[1, 0], pose[0, 0])))
    middle = np.array([(size[0] - 1) / 2, (size[1] - 1) / 2])
    shift = np.abs(pose @ [*middle, 1] - middle) / size
    return bool(degrees > TURN + STEP or shift.max() > 1.25 * SHIFT)

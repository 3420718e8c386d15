"""Where a part lies in its image: the shift and rotation that lay the image on a reference image of a good part.

A coarse search turns the image in steps and slides the middle of the reference over it; the best places are refined
by maximising the enhanced correlation coefficient (Evangelidis & Psarakis 2008), as OpenCV does. Both see edges and not
light: what is left when a blurred copy is taken away.

A *pose* is float64 `(2, 3)`: the aligned image's pixel (x, y) is the image's pixel `pose @ (x, y, 1)`, where whole
numbers are the centres of pixels.
"""

from __future__ import annotations

from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
from PIL import Image

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
    """The image (H, W, 3) with no side over `SIDE`."""
    factor = min(1.0, SIDE / max(image.shape[:2]))
    height, width = (max(1, round(side * factor)) for side in image.shape[:2])
    return resized(image, (width, height))


def find(image: Pixels, reference: Pixels) -> tuple[Pose, float]:
    """The pose of an image uint8 (H, W, 3) with the same aspect as the reference (h, w, 3), and their correlation.

    The correlation, -1 to 1, is -1 where nothing was found, or a part that is turned or shifted by more than `TURN` or
    `SHIFT`.
    """
    height, width = reference.shape[:2]
    seen, wanted = (_edges(_grey(one, (width, height))) for one in (image, reference))
    whole = max(height, width)
    small, little = (_reduced(warped, min(1.0, COARSE / whole)) for warped in (wanted, seen))
    starts = [_moved(pose, little.shape, seen.shape) for pose in _coarse(small, little)]
    middle = min(1.0, MIDDLE / whole)
    one, other = _reduced(wanted, middle), _reduced(seen, middle)
    refined = [_refined(one, other, _moved(start, seen.shape, other.shape)) for start in starts]
    pose, sure = max(refined, key=lambda found: found[1])
    if middle < 1 and sure > -1:
        pose, sure = _refined(wanted, seen, _moved(pose, other.shape, seen.shape))
    turned = abs(np.degrees(np.arctan2(pose[1, 0], pose[0, 0])))
    middle_of = np.array([(width - 1) / 2, (height - 1) / 2])
    shifted = np.abs(pose @ [*middle_of, 1] - middle_of) / (width, height)
    if turned > TURN + STEP or shifted.max() > 1.25 * SHIFT:
        sure = -1.0
    return _moved(pose, reference.shape, image.shape), float(sure)


def aligned(image: Pixels, pose: Pose, filling: Pixels | None = None) -> Pixels:
    """The image (H, W, 3) as the reference lies. Where it shows nothing stands `filling`, the reference at the
    image's size, as bright as the image is elsewhere, as good parts look there; without it the edge is repeated."""
    cv2 = opencv()
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    size = (image.shape[1], image.shape[0])
    found = aligned_values(image, pose)
    shown = cv2.warpAffine(np.full(image.shape[:2], 255, np.uint8), pose, size, flags=flags) == 255
    if filling is None or shown.all() or not shown.any():
        return found
    gain = found[shown].mean(0, dtype=np.float64) / np.maximum(filling[shown].mean(0, dtype=np.float64), 1)
    found[~shown] = np.clip(np.round(filling[~shown] * gain), 0, 255).astype(np.uint8)
    return found


def resized(image: Pixels, size: tuple[int, int]) -> Pixels:
    """At `size` (width, height), bilinearly and antialiased; as it is where it has that."""
    if (image.shape[1], image.shape[0]) == size:
        return image
    return np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BILINEAR))


def back(values: npt.NDArray[Any], pose: Pose, size: tuple[int, int], outside: float) -> npt.NDArray[Any]:
    """Maps of an aligned image, (h, w) or (h, w, C), as the image itself lies: of the same shape and type. `size`
    is the (width, height) that the pose is of; what the aligned image does not show becomes `outside`."""
    cv2 = opencv()
    shape = values.shape[:2]
    of = _moved(pose, (size[1], size[0]), shape)
    return np.asarray(
        cv2.warpAffine(
            values,
            of,
            (shape[1], shape[0]),
            flags=cv2.INTER_LINEAR,  # without WARP_INVERSE_MAP: the pose is turned round
            borderMode=cv2.BORDER_CONSTANT,
            borderValue=(outside,) * 4,
        ),
        values.dtype,
    )


def _grey(image: Pixels, size: tuple[int, int]) -> Pixels:
    return resized(np.asarray(Image.fromarray(image).convert("L")), size)


def _edges(grey: Pixels) -> Floats:
    cv2 = opencv()
    values = grey.astype(np.float32)
    return np.asarray(values - cv2.GaussianBlur(values, (0, 0), max(grey.shape) / 32), np.float32)


def _reduced(warped: Floats, factor: float) -> Floats:
    if factor == 1:
        return warped
    height, width = (max(1, round(side * factor)) for side in warped.shape)
    return np.asarray(Image.fromarray(warped).resize((width, height), Image.Resampling.BILINEAR))


def _moved(pose: Pose, old: tuple[int, ...], new: tuple[int, ...]) -> Pose:
    """The pose of an image of `old` (height, width, ...) for the same image at the size `new`."""
    across, down = new[1] / old[1], new[0] / old[0]
    # Pixel centres are at whole numbers, so what scales is the place plus a half.
    to = np.array([[across, 0, across / 2 - 0.5], [0, down, down / 2 - 0.5], [0, 0, 1]])
    found: Pose = (to @ np.vstack([pose, [0, 0, 1]]) @ np.linalg.inv(to))[:2]
    return found


def _coarse(wanted: Floats, seen: Floats) -> list[Pose]:
    """The poses of the turns at which the middle of the reference is most like a place of the image."""
    cv2 = opencv()
    height, width = wanted.shape
    down, across = round(SHIFT * height), round(SHIFT * width)
    template = np.ascontiguousarray(wanted[down : height - down, across : width - across])
    found = []
    for turn in range(-TURN, TURN + 1, STEP):
        matrix = np.asarray(cv2.getRotationMatrix2D(((width - 1) / 2, (height - 1) / 2), turn, 1.0), np.float64)
        turned = aligned_values(seen, matrix)
        # An image without any edge has no correlation.
        like = np.nan_to_num(cv2.matchTemplate(turned, template, cv2.TM_CCOEFF_NORMED), posinf=-1, neginf=-1)
        y, x = np.unravel_index(int(like.argmax()), like.shape)
        moved = np.vstack([matrix, [0, 0, 1]]) @ [[1, 0, x - across], [0, 1, y - down], [0, 0, 1]]
        found.append((float(like[y, x]), moved[:2]))
    found.sort(key=lambda one: -one[0])
    return [pose for _, pose in found[:STARTS]]


def aligned_values(values: npt.NDArray[V], pose: Pose) -> npt.NDArray[V]:
    """As `aligned` without a filling, of any values (h, w) or (h, w, C)."""
    cv2 = opencv()
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    size = (values.shape[1], values.shape[0])
    return np.asarray(cv2.warpAffine(values, pose, size, flags=flags, borderMode=cv2.BORDER_REPLICATE), values.dtype)


def _refined(wanted: Floats, seen: Floats, start: Pose) -> tuple[Pose, float]:
    cv2 = opencv()
    criteria = (cv2.TERM_CRITERIA_EPS | cv2.TERM_CRITERIA_COUNT, 60, 1e-5)
    try:
        sure, pose = cv2.findTransformECC(
            wanted, seen, start.astype(np.float32), cv2.MOTION_EUCLIDEAN, criteria, None, 5
        )
    except cv2.error:  # it did not converge
        return start, -1.0
    return np.asarray(pose, np.float64), float(sure)

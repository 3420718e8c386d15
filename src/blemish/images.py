"""Any image file -> `uint8 (H, W, 3)` RGB, or a refusal in one sentence.

The same values in a file always become the same pixels: contrast is never stretched to the image's own range,
because a part must look the same in every image. The rules, and what is refused:

- Transparent pixels are composited on white. Of animated and multi-page files the first frame is read.
- EXIF orientation is applied. Colour profiles are not; CMYK is converted without one, as Pillow does it.
- 16-bit grey: round(value * 255 / 65535); a TIFF whose header says 12 bits: round(value * 255 / 4095).
- 16-bit colour: the high byte, value // 256 (Pillow keeps no more), at most one level from the rounded value.
- A 16-bit image with no value above 4095 that is not all black is refused: it holds 10- or 12-bit values in
  the low bits, of which only 16 grey levels would remain.
- Float TIFF: round(value * 255) where every value lies in 0..1. Anything else is refused, and so are 32-bit
  and signed integers and Lab colour: nothing in such a file says which value is white.
"""

from __future__ import annotations

import io
import stat
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, TypeVar, cast

import numpy as np
from PIL import (
    BmpImagePlugin,
    GifImagePlugin,
    Image,
    ImageFile,
    JpegImagePlugin,
    PngImagePlugin,
    TiffImagePlugin,
    UnidentifiedImageError,
    WebPImagePlugin,
)

from blemish import masks
from blemish.atomic import open_regular
from blemish.decoding import Metered, take, turn
from blemish.listing import DEPTH, Tree, walk
from blemish.types import BlemishError, Sample

if TYPE_CHECKING:
    import numpy.typing as npt

# Importing them registers them in Image.OPEN; none of Pillow's other decoders is ever tried.
_PLUGINS = (JpegImagePlugin, PngImagePlugin, BmpImagePlugin, TiffImagePlugin, WebPImagePlugin, GifImagePlugin)
_FORMATS = ("JPEG", "PNG", "BMP", "TIFF", "WEBP", "GIF", "DIB")
MAX_PIXELS = 100_000_000
EMPTY = " is empty (0 bytes); write or copy it again."
BAND = 2**18  # pixels that are converted at a time

_ORIENTATION = 0x0112  # EXIF 2.3, 4.6.4 A: 1 upright ... 8 rotated by a quarter
_PHOTOMETRIC = 262  # TIFF 6.0, section 3: 0 means that white is zero
_BITS = 258
_TWELVE_BITS = 4095

_D = TypeVar("_D", bound=np.generic)


class ImageError(BlemishError):
    """An image that cannot be read; the sentence names file, cause and remedy."""


def load_image(image: Path | str | bytes, *, max_pixels: int = MAX_PIXELS, name: str = "") -> npt.NDArray[np.uint8]:
    """An image file, or the content of one that errors call `name`, as C-contiguous `uint8 (H, W, 3)` RGB, upright.

    Waits where large images that other threads hold leave no memory for it, see `decoding.py`.
    Raises ImageError for anything that is not a whole, readable image of at most `max_pixels` pixels.
    """
    content = image if isinstance(image, bytes) else None
    path = image if not isinstance(image, bytes) else name or "the image"
    with turn(), _opened(path, max_pixels, content) as opened:
        take(opened.width * opened.height)
        sixteen_bits = ";16" in str(opened.tile)  # per channel; known only before decoding
        opened.load()
        pixels = _upright(_rgb(opened, path, sixteen_bits), opened)
        return np.require(pixels, requirements=["C", "W"])  # not a view into Pillow's buffer


def read_file(path: Path | str, most: int) -> bytes:
    """The content of an image file of at most `most` bytes. Raises ImageError, in the words of `load_image`."""
    path = Path(path)
    with _file(path) as file:
        try:
            content = file.read(most + 1)
        except OSError as error:
            raise ImageError(f"{_shown(path)} cannot be read ({_cause(error)}); check its disk.") from error
    if len(content) > most:
        raise ImageError(f"{_shown(path)} has more than {most:,} bytes, far more than an image needs; check it.")
    return content


def decode(sample: Sample) -> npt.NDArray[np.uint8]:
    """A sample's image, as `load_image`."""
    return load_image(sample.path) if sample.pixels is None else sample.pixels


def load_mask(path: Path | str, size: tuple[int, int]) -> npt.NDArray[np.bool_]:
    """The defect mask as `bool (H, W)`; `size` is the (height, width) of its upright image.

    A pixel's value is its largest colour channel, on black where transparent; `masks.defective` says which values are
    defective. A folder is the union of the masks in it.
    Raises ImageError as `load_image` does, for another size, and for a folder without images.
    """
    path = Path(path)
    if path.is_dir():
        files = find_images(path)
        if not files:
            raise ImageError(f"{_shown(path)} holds no masks; draw one, or remove the folder.")
        return np.asarray(np.stack([load_mask(file, size) for file in files]).any(axis=0))
    return masks.defective(*mask_values(path, size))


def mask_values(path: Path, size: tuple[int, int]) -> tuple[npt.NDArray[Any], float]:
    """The values (H, W) of one mask's file and the value of its white; as `load_mask`."""
    height, width = size
    with _opened(path, max(MAX_PIXELS, height * width)) as image:
        actual = _upright_size(image)
        if actual != (width, height):
            raise ImageError(
                f"{_shown(path)}: mask of {actual[0]} × {actual[1]} pixels, image of {width} × {height}; "
                "a mask must have its image's size: make it again, or remove it."
            )
        image.load()
        values, white = _values(image)
        return np.ascontiguousarray(_upright(values, image)), white


def pages(path: Path | str) -> int:
    """How many pages or frames the file has, of which the first is read; 1 for a JPEG, whatever it carries besides.
    Raises ImageError."""
    with _opened(Path(path), None) as image:
        return 1 if image.format in {"JPEG", "MPO"} else int(getattr(image, "n_frames", 1))


def is_16_bit(path: Path | str) -> bool:
    """Whether the file holds 16 bits for each value. Raises ImageError."""
    with _opened(Path(path), None) as image:
        bits = getattr(image, "tag_v2", {}).get(_BITS)
        return bits != (12,) and (image.mode.startswith("I;16") or ";16" in str(image.tile))


def read_size(path: Path | str) -> tuple[int, int]:
    """(width, height) of the upright image, from the file's header alone. Raises ImageError."""
    with _opened(Path(path), None) as image:
        return _upright_size(image)


def has_image_start(path: Path) -> bool:
    """Whether a file begins as a JPEG, PNG, BMP, TIFF, WebP or GIF does."""
    try:
        with path.open("rb") as file:
            start = file.read(12)
    except OSError:
        return False
    if start.startswith(b"RIFF"):
        return start.endswith(b"WEBP")
    return start.startswith((b"\xff\xd8\xff", b"\x89PNG\r\n", b"GIF8", b"II*\0", b"MM\0*")) or (
        start.startswith(b"BM") and start[6:10] == b"\0\0\0\0"
    )


def find_images(folder: Path | str, *, recursive: bool = False) -> list[Path]:
    """The images in `folder`, recognised by their endings, in natural order (2 before 10).

    The order is the same on every machine. Hidden files, litter, what blemish wrote and links to what is listed already
    are left out (see `listing`). Raises ImageError if a folder cannot be listed.
    """
    return [Path(folder, name) for name in listed(Path(folder), DEPTH if recursive else 0, count=False).images]


def listed(folder: Path, depth: int = DEPTH, *, count: bool = True) -> Tree:
    """What is below `folder`, as `listing.walk`. Raises ImageError if a folder cannot be listed."""
    try:
        return walk(folder, depth, count=count)
    except OSError as error:
        where = error.filename if isinstance(error.filename, str) else folder
        raise ImageError(f"{_shown(Path(where))}: cannot be listed ({_cause(error)}); check the path.") from error


def _file(path: Path) -> IO[bytes]:
    """The file, opened; raises ImageError where it is none, or empty."""
    shown = _shown(path)
    try:
        kind = path.stat()
        if stat.S_ISDIR(kind.st_mode):
            raise ImageError(f"{shown} is a folder, not an image; give an image file.")
        if not stat.S_ISREG(kind.st_mode):
            raise ImageError(f"{shown} is a device or pipe, not an image; give an image file.")
        if kind.st_size == 0:
            raise ImageError(f"{shown}{EMPTY}")
        return open_regular(path)
    except FileNotFoundError:
        raise ImageError(f"{shown}: there is no such file; check the path.") from None
    except (OSError, ValueError) as error:
        raise ImageError(f"{shown} cannot be opened ({_cause(error)}); check the path.") from error


@contextmanager
def _opened(path: Path | str, max_pixels: int | None, content: bytes | None = None) -> Iterator[ImageFile.ImageFile]:
    """The image of a file, or of a file's `content`, with its header read and its size checked; errors in the block
    become an ImageError."""
    shown = _shown(path)
    if content == b"":
        raise ImageError(f"{shown}{EMPTY}")
    file = _file(Path(path)) if content is None else io.BytesIO(content)
    with file, _quiet():
        try:
            metered = Metered(file)
            with _decoder(cast("IO[bytes]", metered)) as image:
                width, height = image.size
                metered.allow(width * height)
                if width < 1 or height < 1:
                    raise ImageError(f"{shown} has no pixels ({width} × {height}); write or copy it again.")
                if max_pixels is not None and width * height > max_pixels:
                    raise ImageError(
                        f"{shown} has {width} × {height} = {width * height:,} pixels, more than the limit of "
                        f"{max_pixels:,}; make it smaller, or cut it into pieces."
                    )
                yield image
        except ImageError:
            raise
        except UnidentifiedImageError:
            raise ImageError(
                f"{shown} is not an image that blemish reads (JPEG, PNG, BMP, TIFF, WebP, GIF), "
                "whatever its name says; convert it, or remove it."
            ) from None
        except Exception as error:  # Pillow's decoders raise almost anything on damaged files
            # Of these two the text is about the image; of others, which Pillow wraps, it is about its own code.
            first = error.args[0] if error.args and isinstance(error.args[0], Exception) else error
            why = f" ({_cause(first)})" if isinstance(first, (OSError, SyntaxError)) else ""
            raise ImageError(f"{shown} is damaged or cut short{why}; write or copy it again.") from error


def _decoder(file: IO[bytes]) -> ImageFile.ImageFile:
    """Like Image.open for our formats, but without its size limit, which no argument raises."""
    start = file.read(16).ljust(16, b"\0")  # Pillow's check of DIB fails on shorter files
    for name in _FORMATS:
        factory, accepts = Image.OPEN[name]
        if accepts is None or accepts(start) is not True:
            continue
        file.seek(0)
        return factory(file, "")
    raise UnidentifiedImageError


def _rgb(image: Image.Image, path: Path | str, sixteen_bits: bool) -> npt.NDArray[np.uint8]:
    mode = image.mode
    if mode.startswith("I;16"):
        return _from_16_bits(image, path)
    if mode == "F":
        values = np.asarray(image)
        if _white_is_zero(image) or not (values.min() >= 0 and values.max() <= 1):  # NaN fails too
            raise ImageError(
                f"{_shown(path)} holds floating-point values outside 0..1, so nothing says which value is white; "
                "save it as an 8-bit or 16-bit image."
            )
        return _grey(np.rint(values * np.float32(255)).astype(np.uint8))
    if mode in {"I", "LAB", "HSV"}:
        what = "32-bit or signed integers" if mode == "I" else f"{mode} colour"
        raise ImageError(f"{_shown(path)} holds {what}, which is not read; save it as 8-bit RGB or grey.")
    pixels = _on(image, background=255)
    if sixteen_bits and 0 < pixels.max() <= _TWELVE_BITS >> 8:
        raise _too_dark(path)
    return pixels


def _from_16_bits(image: Image.Image, path: Path | str) -> npt.NDArray[np.uint8]:
    values = np.asarray(image).astype(np.uint32)
    bits = getattr(image, "tag_v2", {}).get(_BITS, (16,))
    white = _TWELVE_BITS if bits == (12,) else 65535
    if _white_is_zero(image):  # Pillow inverts 8-bit images, but not 16-bit ones
        values = white - values
    if white == 65535 and 0 < values.max() <= _TWELVE_BITS:
        raise _too_dark(path)
    if "transparency" in image.info:  # Pillow drops it
        raise ImageError(f"{_shown(path)} is 16-bit grey with a transparent colour; save it without.")
    return _grey(((values * 255 + white // 2) // white).astype(np.uint8))


def _values(image: Image.Image) -> tuple[npt.NDArray[Any], float]:
    """A mask's values (H, W), the largest of its channels, and the value of its white."""
    if image.mode.startswith("I;16"):
        return np.asarray(image), 65535
    if image.mode in {"I", "F"}:
        return np.asarray(image), 255 if image.mode == "I" else 1
    if image.mode == "L" and not image.has_transparency_data:
        return np.asarray(image), 255
    rgb = _on(image, background=0)
    return np.maximum(np.maximum(rgb[..., 0], rgb[..., 1]), rgb[..., 2]), 255  # .max(axis=2) is slow


def _too_dark(path: Path | str) -> ImageError:
    return ImageError(
        f"{_shown(path)} is a 16-bit image with no value above {_TWELVE_BITS} of 65535, "
        "as 10- and 12-bit cameras write them; scale the values to the full 16 bits "
        "(12-bit values times 16), or save it with 8 bits."
    )


def _on(image: Image.Image, background: int) -> npt.NDArray[np.uint8]:
    """`uint8 (H, W, 3)`, composited on the background's grey where it is transparent. Some rows at a time: as a whole
    it would take two to four times the memory."""
    width, height = image.size
    pixels = np.empty((height, width, 3), np.uint8)
    for top in range(0, height, rows := max(1, BAND // width)):
        bottom = min(height, top + rows)
        pixels[top:bottom] = _band_on(image.crop((0, top, width, bottom)), background)
    return pixels


def _band_on(image: Image.Image, background: int) -> npt.NDArray[np.uint8]:
    if not image.has_transparency_data and image.mode not in {"La", "RGBa"}:
        return np.asarray(image.convert("RGB"))
    straight = {"La": "LA", "RGBa": "RGBA"}.get(image.mode)  # their colours are multiplied by alpha
    rgba = np.asarray((image.convert(straight) if straight else image).convert("RGBA"))
    alpha = rgba[..., 3:].astype(np.uint16)
    mixed = rgba[..., :3] * alpha + np.uint16(background) * (255 - alpha)  # at most 255 * 255: fits 16 bits
    return ((mixed + 127) // 255).astype(np.uint8)


def _grey(values: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    return np.repeat(values[..., None], 3, axis=2)


def _white_is_zero(image: Image.Image) -> bool:
    return bool(getattr(image, "tag_v2", {}).get(_PHOTOMETRIC) == 0)


def _orientation(image: Image.Image) -> int:
    if image.format == "TIFF":  # Pillow rotates these itself, and their size
        return 1
    try:
        value = image.getexif().get(_ORIENTATION, 1)
    except Exception:  # a camera's broken EXIF block does not make its pixels unreadable
        return 1
    return value if value in range(1, 9) else 1


def _upright_size(image: Image.Image) -> tuple[int, int]:
    width, height = image.size
    return (height, width) if _orientation(image) >= 5 else (width, height)


def _upright(pixels: npt.NDArray[_D], image: Image.Image) -> npt.NDArray[_D]:
    orientation = _orientation(image)
    if orientation >= 5:  # rows and columns change places
        pixels = pixels.swapaxes(0, 1)
    if orientation in {2, 3, 6, 7}:
        pixels = pixels[:, ::-1]
    if orientation in {3, 4, 7, 8}:
        pixels = pixels[::-1]
    return pixels


_lock = threading.Lock()
_reading = 0
_filters: warnings.catch_warnings[None] | None = None


@contextmanager
def _quiet() -> Iterator[None]:
    """Turns Pillow's own warnings off while any thread reads an image, and no others.

    One catch_warnings is shared by all readers: nested across threads, it would leave them off for ever.
    """
    global _reading, _filters
    with _lock:
        _reading += 1
        if _reading == 1:
            _filters = warnings.catch_warnings()
            _filters.__enter__()
            warnings.filterwarnings("ignore", module=r"PIL(\.|$)")
    try:
        yield
    finally:
        with _lock:
            _reading -= 1
            if _reading == 0 and _filters is not None:
                _filters.__exit__(None, None, None)


def _cause(error: BaseException) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return (str(error).splitlines() or [""])[0] or type(error).__name__


def _shown(path: Path | str) -> str:
    return str(path).encode("utf-8", "replace").decode()  # also names that are not valid UTF-8

"""The images of a request: one raw body, or the files of a form. Bytes are counted as they come: neither memory nor the
disk takes more than the limits, whatever length was announced."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator

from fastapi import Request
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser

from blemish.types import BlemishError
from blemish.web.config import Limits
from blemish.web.inspection import TooLargeError

NOTHING = "The request has no image; send it as the body, or as `images` of a multipart form."


async def uploads(request: Request, limits: Limits, name: str = "image") -> AsyncIterator[tuple[int, str, bytes]]:
    """Number, name and bytes of each image; `name` is a raw body's. Raises `BlemishError` for a request without one,
    and `TooLargeError` as soon as a body, a part of a form, or all of a form is over the limits."""
    if not request.headers.get("content-type", "").startswith("multipart/form-data"):
        content = await _body(request, name, limits)
        if not content:
            raise BlemishError(NOTHING)
        yield 0, name, content
        return
    announced = request.headers.get("content-length", "")
    if announced.isdecimal() and int(announced[:20]) > limits.form_megabytes * 1e6:
        raise _form_too_large(limits)
    try:
        form = await _Parts(request, limits).parse()
    except MultiPartException as cause:
        raise BlemishError(f"The form cannot be read ({cause.message}); send at most {limits.files} images.") from None
    try:
        parts = [part for part in form.getlist("images") if isinstance(part, UploadFile) and part.filename]
        if not parts:
            raise BlemishError(NOTHING)
        for number, part in enumerate(parts):
            yield number, part.filename or "image", await part.read()
    finally:
        await form.close()


class _Parts(MultiPartParser):
    """Starlette's parser, which spools parts of over a megabyte to the disk, and limits neither a file nor them all."""

    def __init__(self, request: Request, limits: Limits) -> None:
        super().__init__(request.headers, _counted(request, limits), max_files=limits.files, max_fields=10)
        self._limits, self._size = limits, 0

    def on_part_begin(self) -> None:
        self._size = 0
        super().on_part_begin()

    def on_part_data(self, data: bytes, start: int, end: int) -> None:
        self._size += end - start
        if self._size > self._limits.megabytes * 1e6:
            file = self._current_part.file
            raise _too_large((file and file.filename) or "A part of the form", self._limits)
        super().on_part_data(data, start, end)


async def _counted(request: Request, limits: Limits) -> AsyncGenerator[bytes, None]:
    size = 0
    async for block in request.stream():
        size += len(block)
        if size > limits.form_megabytes * 1e6:
            raise _form_too_large(limits)
        yield block


async def _body(request: Request, name: str, limits: Limits) -> bytes:
    content = bytearray()
    async for block in request.stream():
        content += block
        if len(content) > limits.megabytes * 1e6:
            raise _too_large(name, limits)
    return bytes(content)


def _too_large(name: str, limits: Limits) -> TooLargeError:
    return TooLargeError(f"{name}: is larger than {limits.megabytes:g} MB; make it smaller.")


def _form_too_large(limits: Limits) -> TooLargeError:
    return TooLargeError(f"The form is larger than {limits.form_megabytes:g} MB; send fewer images at once.")

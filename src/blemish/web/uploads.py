"""The images of a request: one raw body, or the files of a form, and their verdicts. Bytes are counted as they come:
neither memory nor the disk takes more than the limits, whatever length was announced, however many send at once."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import aclosing, contextmanager
from dataclasses import dataclass

from fastapi import Request
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser

from blemish.types import BlemishError
from blemish.web.config import Limits
from blemish.web.inspection import TooLargeError, UnavailableError
from blemish.web.site import Site
from blemish.web.tables import Verdict

NOTHING = "The request has no image; send it as the body, or as `images` of a multipart form."
MEMORY = 1_100_000_000  # bytes of all uploads in memory: a form of a thousand parts that are just not spooled yet
Take = Callable[[int], None]


class Room:
    """Bytes that all uploads of a server may have at once; touched by the event loop alone."""

    def __init__(self, most: float) -> None:
        self.most, self.taken = most, 0

    @contextmanager
    def entered(self) -> Iterator[Take]:
        """A function that takes so many bytes, or gives them back (less than 0), until the block ends. It raises
        `UnavailableError` where there are no more."""
        own = 0

        def take(size: int) -> None:
            nonlocal own
            if size > 0 and self.taken + size > self.most:
                raise UnavailableError("Too many uploads are on their way.")
            own, self.taken = own + size, self.taken + size

        try:
            yield take
        finally:
            self.taken -= own


@dataclass(frozen=True)
class Rooms:
    """Of a server: in memory, and in the folder for temporary files."""

    memory: Room
    disk: Room


def rooms(limits: Limits) -> Rooms:
    return Rooms(Room(max(MEMORY, 4e6 * limits.megabytes)), Room(2e6 * limits.form_megabytes))


async def inspected(
    request: Request, site: Site, product: str, *, by: str, source: str, name: str = "image", key: str | None = None
) -> list[Verdict]:
    """The verdicts of a request's images, each recorded before the next; `name` is a raw body's, `key` that of a
    request that may come again. Where it raises, `request.state.recorded` of them are recorded (see `answers.py`)."""
    verdicts: list[Verdict] = []
    held = request.app.state.rooms
    async with aclosing(_uploads(request, site.config.limits, held, name)) as images:
        async for number, part, content in images:
            of_image = f"{key}/{number}" if key else None
            verdict = await run_in_threadpool(
                site.line.inspect, content, part, product, by=by, source=source, request=of_image
            )
            verdicts.append(verdict)
            request.state.recorded = len(verdicts)
    return verdicts


async def _uploads(
    request: Request, limits: Limits, held: Rooms, name: str
) -> AsyncGenerator[tuple[int, str, bytes], None]:
    """Number, name and bytes of each image. Raises `BlemishError` for a request without one, `TooLargeError` as soon
    as a body, a part of a form, or all of a form is over the limits, and `UnavailableError` where there is no room."""
    with held.memory.entered() as take, held.disk.entered() as spool:
        if not request.headers.get("content-type", "").startswith("multipart/form-data"):
            content = await _body(request, name, limits, take)
            if not content:
                raise BlemishError(NOTHING)
            yield 0, name, content
            return
        announced = request.headers.get("content-length", "")
        if announced.isdecimal() and int(announced[:20]) > limits.form_megabytes * 1e6:
            raise _form_too_large(limits)
        try:
            form = await _Parts(request, limits, take, spool).parse()
        except MultiPartException as cause:
            words = f"The form cannot be read ({cause.message}); send at most {limits.files} images."
            raise BlemishError(words) from None
        try:
            parts = [part for part in form.getlist("images") if isinstance(part, UploadFile) and part.filename]
            if not parts:
                raise BlemishError(NOTHING)
            for number, part in enumerate(parts):
                with held.memory.entered() as read:
                    read(part.size or 0)
                    yield number, part.filename or "image", await part.read()
        finally:
            await form.close()


class _Parts(MultiPartParser):
    """Starlette's parser, which spools parts of over a megabyte to the disk, and limits neither a file nor them all."""

    def __init__(self, request: Request, limits: Limits, take: Take, spool: Take) -> None:
        counted = _counted(request, limits, spool)
        super().__init__(request.headers, counted, max_files=limits.files, max_fields=10)
        self._limits, self._take, self._size = limits, take, 0

    def on_part_begin(self) -> None:
        self._size = 0
        super().on_part_begin()

    def on_part_data(self, data: bytes, start: int, end: int) -> None:
        before, self._size = self._size, self._size + end - start
        if self._size > self._limits.megabytes * 1e6:
            file = self._current_part.file
            raise _too_large((file and file.filename) or "A part of the form", self._limits)
        self._take(self._in_memory(self._size) - self._in_memory(before))
        super().on_part_data(data, start, end)

    def _in_memory(self, size: int) -> int:
        return size if size <= self.spool_max_size else 0


async def _counted(request: Request, limits: Limits, spool: Take) -> AsyncGenerator[bytes, None]:
    size = 0
    async for block in request.stream():
        size += len(block)
        if size > limits.form_megabytes * 1e6:
            raise _form_too_large(limits)
        spool(len(block))
        yield block


async def _body(request: Request, name: str, limits: Limits, take: Take) -> bytes:
    content = bytearray()
    async for block in request.stream():
        take(len(block))
        content += block
        if len(content) > limits.megabytes * 1e6:
            raise _too_large(name, limits)
    return bytes(content)


def _too_large(name: str, limits: Limits) -> TooLargeError:
    return TooLargeError(f"{name}: is larger than {limits.megabytes:g} MB; make it smaller.")


def _form_too_large(limits: Limits) -> TooLargeError:
    return TooLargeError(f"The form is larger than {limits.form_megabytes:g} MB; send fewer images at once.")

"""Trouble that passes, and is no fault of the image: no memory, no permission, a disk or a server that does not answer.

An image that meets it is tried again at growing intervals, until it can be judged. It is never recorded as broken.
"""

from __future__ import annotations

import errno
import os
import re

FIRST, LONGEST = 0.5, 60.0  # seconds until the second try, and at most between two tries

# The only errors of the system that a damaged image itself can cause (an offset before its beginning, a size beyond any
# file), or that say that it is gone.
_OF_THE_IMAGE = {
    *(errno.EINVAL, errno.EOVERFLOW, errno.EFBIG, errno.ESPIPE),
    *(errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP),
}
# In the texts of onnxruntime, which has one kind of error for all that happens while it runs.
_MACHINE = re.compile(r"alloc|memory|cuda|cudnn|cublas|gpu", re.IGNORECASE)


def passing(error: BaseException | None) -> str:
    """Why, in words, where this error or what caused it is trouble that passes; else ""."""
    while error is not None:
        text = (str(error).splitlines() or [""])[0]
        if isinstance(error, MemoryError):
            return "not enough memory"
        if isinstance(error, OSError) and error.errno and error.errno not in _OF_THE_IMAGE:
            return os.strerror(error.errno)
        if isinstance(error, OSError) and not error.errno and text.startswith("out of memory"):  # Pillow's decoders
            return "not enough memory"
        if type(error).__module__.partition(".")[0] == "onnxruntime" and _MACHINE.search(str(error)):
            return "not enough memory, or the GPU failed"
        if type(error).__module__.startswith("cv2") and getattr(error, "code", 0) == -4:  # StsNoMem
            return "not enough memory"
        if isinstance(error, RuntimeError) and "start new thread" in text:
            return "no other thread can be started"
        error = error.__cause__
    return ""


def wait(tries: int, longest: float = LONGEST) -> float:
    """Seconds until the next try, after so many (from 1)."""
    return min(longest, FIRST * 2.0 ** min(tries - 1, 30))

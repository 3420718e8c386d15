"""Names of the files that are written about an image: the image's own, made so that every file system takes them."""

from __future__ import annotations

import os
from hashlib import sha256

LONGEST = 240  # bytes of a file's or folder's name; file systems take 255, and an ending is still to be added
WHOLE = 1000  # bytes of all of them together; systems take 4096 with the folder that they are written into
KEPT = 160  # bytes of a name that is too long


def output_name(name: str) -> str:
    """The name, without its ending `.jpg`, of what is written about the image `name` (relative, with forward slashes).

    Nearly always `name` itself. A part that is too long is cut, and gets `~` and a hash of the whole; so is a path as a
    whole. A folder whose name ends in `.jpg` gets a hash too, because a file `a.png` beside a folder `a.png.jpg` would
    else need both a file and a folder of that name. Always the same for one name, and different for any other.
    """
    *folders, file = name.split("/")
    folders = [_short(part, LONGEST) if not part.lower().endswith(".jpg") else _hashed(part) for part in folders]
    whole = "/".join([*folders, _short(file, LONGEST)])
    return whole if len(os.fsencode(whole)) <= WHOLE else _hashed(file, name)


def _short(part: str, most: int) -> str:
    return part if len(os.fsencode(part)) <= most else _hashed(part)


def _hashed(part: str, whole: str = "") -> str:
    """The beginning of `part` and a hash of `whole`, in at most 240 bytes; no character is cut in two."""
    start = os.fsencode(part)[:KEPT].decode("utf-8", "ignore")
    return f"{start}~{sha256(os.fsencode(whole or part)).hexdigest()[:16]}"

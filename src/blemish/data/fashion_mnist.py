"""Fashion-MNIST (Xiao, Rasul & Vollgraf 2017, MIT licence), downloaded once by torchvision into a cache folder."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from http.client import HTTPException
from pathlib import Path

from blemish.types import BlemishError


def fashion_mnist() -> Path:
    """The folder with the four idx files; they are downloaded where it does not hold them yet.

    torchvision checks their MD5 sums. Raises BlemishError, saying what to put where, if they cannot be had.
    """
    from torchvision import datasets  # only this download needs it

    folder = cache_folder() / "fashion-mnist"
    names = [name for name, _ in datasets.FashionMNIST.resources]
    if all((folder / name).is_file() or (folder / name.removesuffix(".gz")).is_file() for name in names):
        return folder
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder, prefix=".partial-") as temporary:
            raw = Path(datasets.FashionMNIST(temporary, download=True).raw_folder)
            for name in names:
                shutil.move(raw / name, folder / name)  # the files as they came, so a killed run leaves whole ones
    except (OSError, RuntimeError, HTTPException) as cause:
        first = next((line for line in reversed(str(cause).splitlines()) if line.strip()), type(cause).__name__)
        raise BlemishError(
            f"Fashion-MNIST could not be downloaded ({first.strip()}); fetch {', '.join(names)} on a machine with a "
            f"net and put them into {folder}, or give the folder that holds them instead of the word fashion-mnist."
        ) from cause
    return folder


def cache_folder() -> Path:
    """Where this platform keeps what programs can fetch again."""
    if sys.platform == "win32":
        base = os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local"
    elif sys.platform == "darwin":
        base = Path.home() / "Library" / "Caches"
    else:
        base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "blemish"

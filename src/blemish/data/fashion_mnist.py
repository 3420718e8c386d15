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
    """The folder with the four idx files, which are downloaded unless they are there already.

    torchvision checks their MD5 sums. Where the download fails, raises BlemishError that says which files to put where.
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
                shutil.move(raw / name, folder / name)  # in one step each, so a killed run leaves no partial file
    except (OSError, RuntimeError, HTTPException) as cause:
        reason = next((line for line in reversed(str(cause).splitlines()) if line.strip()), type(cause).__name__)
        raise BlemishError(
            f"Fashion-MNIST could not be downloaded ({reason.strip()}); fetch {', '.join(names)} on a machine with "
            f"internet access and put them into {folder}, or give the folder that holds them instead of fashion-mnist."
        ) from cause
    return folder


def cache_folder() -> Path:
    """blemish's folder in the platform's cache of files that can be downloaded again."""
    if sys.platform == "win32":
        base = os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local"
    elif sys.platform == "darwin":
        base = Path.home() / "Library" / "Caches"
    else:
        base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "blemish"

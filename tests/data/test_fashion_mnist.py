"""Fashion-MNIST by torchvision's own download from a mirror on this machine, and without any network."""

from __future__ import annotations

import gzip
import hashlib
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest
from torchvision import datasets

from blemish.data.fashion_mnist import cache_folder, fashion_mnist
from blemish.data.idx import read_split
from blemish.types import BlemishError
from tests.data.test_synthetic import digits


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("XDG_CACHE_HOME", "LOCALAPPDATA", "HOME"):
        monkeypatch.setenv(name, str(tmp_path / "cache"))
    return cache_folder()


@pytest.fixture
def mirror(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A small data set with the real file names on a local server whose MD5 sums torchvision expects."""
    folder = digits(tmp_path / "mirror")
    for plain in folder.glob("*-ubyte"):
        plain.with_name(plain.name + ".gz").write_bytes(gzip.compress(plain.read_bytes()))
        plain.unlink()
    names = [name for name, _ in datasets.FashionMNIST.resources]
    sums = [hashlib.md5((folder / name).read_bytes()).hexdigest() for name in names]
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder)))
    thread = Thread(target=server.serve_forever)
    thread.start()
    monkeypatch.setattr(datasets.FashionMNIST, "resources", list(zip(names, sums, strict=True)))
    monkeypatch.setattr(datasets.FashionMNIST, "mirrors", [f"http://127.0.0.1:{server.server_port}/"])
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    yield folder
    server.shutdown()
    server.server_close()
    thread.join()


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        pass


def test_it_is_downloaded_once(cache: Path, mirror: Path) -> None:
    folder = fashion_mnist()
    assert folder == cache / "fashion-mnist"
    assert {f.name: f.read_bytes() for f in folder.iterdir()} == {f.name: f.read_bytes() for f in mirror.iterdir()}
    assert read_split(folder, "train").labels.tolist() == [0, 3, 7] * 6
    for file in mirror.iterdir():
        file.unlink()
    assert fashion_mnist() == folder


def test_a_damaged_download_is_refused_and_leaves_nothing(cache: Path, mirror: Path) -> None:
    (mirror / "t10k-labels-idx1-ubyte.gz").write_bytes(b"something else")
    with pytest.raises(BlemishError, match=r"could not be downloaded \(.*corrupted"):
        fashion_mnist()
    assert not list((cache / "fashion-mnist").iterdir())


def test_files_that_are_there_already_are_used(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.FashionMNIST, "mirrors", [])
    digits(cache / "fashion-mnist")  # two of them with .gz, two without
    assert fashion_mnist() == cache / "fashion-mnist"


def test_without_a_network_the_error_names_files_and_folder(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # A name that can never be resolved (RFC 2606), so that the test is the same where there is a network.
    monkeypatch.setattr(datasets.FashionMNIST, "mirrors", ["http://fashion-mnist.invalid/"])
    with pytest.raises(BlemishError) as caught:
        fashion_mnist()
    text = str(caught.value)
    assert "\n" not in text
    assert str(cache / "fashion-mnist") in text
    assert all(name in text for name, _ in datasets.FashionMNIST.resources)
    assert "instead of fashion-mnist" in text

"""torch.load is the oracle, on files that torch.save writes here; its own reader of tensors alone (`weights_only`)."""

import io
import os
import pickle
import re
import struct
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from blemish.detectors.nn import legacy_torch
from blemish.types import BlemishError


def save(content: Any, file: Path) -> Path:
    torch.save(content, file, _use_new_zipfile_serialization=False)
    return file


def test_a_networks_state(tmp_path: Path) -> None:
    """With the dictionary's own attributes (`_metadata`), and a batch norm's count, int64."""
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    net[1](net[0](torch.rand(2, 3, 8, 8)))
    file = save(net.state_dict(), tmp_path / "w.pth")
    found, wanted = legacy_torch.read(file), torch.load(file, weights_only=True)
    assert list(found) == list(wanted)
    for key, value in wanted.items():
        assert torch.equal(found[key], value)
        assert found[key].dtype == value.dtype


def test_parts_of_storages(tmp_path: Path) -> None:
    """Transposed, from the middle, sharing a storage, scalars and empty ones."""
    whole = torch.arange(24.0).reshape(4, 6)
    state = {
        "turned": whole.t(),
        "part": whole[1:3, 2::2],
        "same": whole,
        "one": torch.tensor(7),
        "none": torch.zeros(0, 3),
    }
    file = save(state, tmp_path / "w.pth")
    found = legacy_torch.read(file)
    for key, value in torch.load(file, weights_only=True).items():
        assert torch.equal(found[key], value)
        assert found[key].is_contiguous()
    found["same"][0] = -1
    assert found["turned"][0, 0] == 0  # nothing is shared


class Hostile:
    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, (f"touch {self.file}",)


@pytest.mark.parametrize("place", range(5))
def test_a_hostile_pickle_is_not_run(place: int, tmp_path: Path) -> None:
    """In each of the five pickles of a file. The same bytes do run in Python's reader."""
    parts = [io.BytesIO() for _ in range(5)]
    contents = [legacy_torch.MAGIC, legacy_torch.VERSION, {"little_endian": True}, {}, []]
    for number, (part, content) in enumerate(zip(parts, contents, strict=True)):
        pickle.dump(Hostile(tmp_path / "ran") if number == place else content, part, protocol=2)
    (tmp_path / "w.pth").write_bytes(b"".join(part.getvalue() for part in parts))
    with pytest.raises(BlemishError, match=r"\(its pickle names posix.system\), and nothing of it was"):
        legacy_torch.read(tmp_path / "w.pth")
    assert not (tmp_path / "ran").exists()
    pickle.loads(parts[place].getvalue())  # noqa: S301  what would have happened
    assert (tmp_path / "ran").exists()


def pickled(written: bytes) -> bytes:
    """A file whose fourth pickle, the object, is `written`."""
    before = (legacy_torch.MAGIC, legacy_torch.VERSION, {"little_endian": True})
    return b"".join(pickle.dumps(part, protocol=2) for part in before) + written + pickle.dumps([], protocol=2)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (pickled(b"\x80\x02cbuiltins\neval\n."), "names builtins.eval"),
        (pickled(b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n(tR."), "calls something"),
        (pickled(b"\x80\x02ccollections\nOrderedDict\n(K\x01tR."), "calls something"),
        (pickled(b"\x80\x02X\x02\x00\x00\x00osX\x06\x00\x00\x00system\x93."), "operation STACK_GLOBAL"),
        (pickled(b"(S'id'\nios\nsystem\n."), "operation STRING"),
        (pickled(b"\x80\x02(cos\nsystem\no."), "names os.system"),
        (pickled(b"\x80\x02\x8c\x01a\x81."), "operation SHORT_BINUNICODE"),
        (pickled(b"\x80\x02K\x01N b."), "0x20|opcode"),
        (pickled(b"\x80\x02K\x01}b."), "builds an object"),
        (pickled(b"\x80\x02}K\x01K\x02s."), "keys that are no names"),
        (pickled(b"\x80\x02K\x01N0s."), "operation POP"),
        (pickled(b"\x80\x02h\x05."), "5"),
        (pickled(b"\x80\x02t."), "damaged"),
        (pickled(b"\x80\x02NQ."), "NoneType"),
        (pickled(b"\x80\x02]."), "more than named tensors"),
        (pickled(b"\x80\x02}X\x01\x00\x00\x00aK\x01s."), "more than named tensors"),
        (pickled(b"\x80\x02}.")[:-1], "exhausted|no end"),
        (b"", "exhausted|no end"),
        (pickle.dumps(1, 2) * 5, "does not begin"),
        (b"PK\x03\x04", "newline"),  # the new format, a .zip
    ],
)
def test_refusals(content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "w.pth").write_bytes(content)
    with pytest.raises(BlemishError, match=rf"w.pth: not a file of weights .*({message}).*nothing of it was executed"):
        legacy_torch.read(tmp_path / "w.pth")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"a": torch.zeros(2, dtype=torch.float64)}, "names torch.DoubleStorage"),
        ({"a": nn.Parameter(torch.zeros(2))}, "names torch._utils._rebuild_parameter"),
        ({"a": {"b": torch.zeros(2)}}, "more than named tensors"),
        ({1: torch.zeros(2)}, "keys that are no names"),
        (OrderedDict(a="text"), "more than named tensors"),
        ({"a": torch.zeros(1).expand(1000)}, "beyond its storage"),
    ],
)
def test_what_torch_can_write_but_is_not_read(content: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(BlemishError, match=message):
        legacy_torch.read(save(content, tmp_path / "w.pth"))


def test_storages_must_be_as_their_tensors_say(tmp_path: Path) -> None:
    file = save({"a": torch.arange(4.0)}, tmp_path / "w.pth")
    whole = file.read_bytes()
    values = struct.pack("<q4f", 4, 0, 1, 2, 3)
    assert whole.endswith(values)
    (key,) = set(re.findall(rb"X....(\d{4,})", whole))
    for changed, message in (
        (whole[:-4], "ends too early"),
        (whole + b"\0", "something follows"),
        (whole[: -len(values)] + struct.pack("<q4f", 3, 0, 1, 2, 3), "another length"),
        (whole[: -len(values)].replace(b"K\x04\x85", b"K\x05\x85") + values, "beyond its storage"),  # its size
        (
            whole[: -len(values)].replace(b"K\x00K\x04\x85", b"K\x01K\x04\x85") + values,
            "beyond its storage",
        ),  # its offset
        (whole[::-1].replace(key[::-1], key[:-1][::-1] + b"?", 1)[::-1], "not those of its tensors"),
    ):
        assert changed != whole
        file.write_bytes(changed)
        with pytest.raises(BlemishError, match=message):
            legacy_torch.read(file)

"""Reads tensors from PyTorch's old file format (before 1.6; `.pth`) without running its pickles.

Such a file is five pickles one after the other (a magic number, a version, facts about the machine, the object, the
storages' keys), then each storage: its length as int64, and its values. A pickle is a program. Here it is not run but
walked, operation by operation (`pickletools.genops` only decodes), by a machine that knows tuples, lists, dictionaries,
strings and integers, and of everything that a pickle can name only the four names below, which stand for themselves and
are never called. Anything else is refused: other names, other operations, other types, what lies outside of a storage.
"""

from __future__ import annotations

import math
import pickletools
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

from blemish.types import BlemishError

MAGIC = 0x1950A86A20F9469CFC6C
VERSION = 1001
DTYPES: dict[str, np.dtype[Any]] = {"torch FloatStorage": np.dtype("<f4"), "torch LongStorage": np.dtype("<i8")}
DICT, TENSOR = "collections OrderedDict", "torch._utils _rebuild_tensor_v2"

_MARK = object()


class _RefusedError(ValueError):
    """The file holds what is not read."""


@dataclass(frozen=True)
class _Name:
    """One of the names known, as a value of the machine."""

    name: str


@dataclass(frozen=True)
class _Storage:
    key: str
    dtype: np.dtype[Any]
    length: int


@dataclass(frozen=True)
class _View:
    """A tensor to be: where its elements lie in a storage."""

    storage: _Storage
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]


def read(file: Path) -> dict[str, Tensor]:
    """The tensors of a state dictionary (float32 or int64, contiguous), in the file's order.

    Raises `BlemishError` for any other content."""
    try:
        with file.open("rb") as stream:
            magic, version, facts, content, keys = (_walk(stream) for _ in range(5))
            if magic != MAGIC or version != VERSION or not isinstance(facts, dict) or not facts.get("little_endian"):
                raise _RefusedError("it does not begin as PyTorch's old format does")
            if not isinstance(content, dict) or not all(isinstance(view, _View) for view in content.values()):
                raise _RefusedError("it holds more than named tensors")
            storages = _storages(stream, [view.storage for view in content.values()], keys)
        return {key: _tensor(view, storages[view.storage.key]) for key, view in content.items()}
    except (ArithmeticError, LookupError, MemoryError, OSError, RuntimeError, TypeError, ValueError) as cause:
        raise BlemishError(
            f"{file}: not a file of weights that can be read safely ({cause}), and nothing of it was executed; "
            "give the weights as a .safetensors file."
        ) from cause


def _walk(stream: BinaryIO) -> Any:
    """The value that one pickle describes."""
    machine = _Machine()
    for operation, argument, _ in pickletools.genops(stream):
        if operation.name == "STOP":
            return machine.stack.pop()
        machine.act(operation.name, argument)
    raise _RefusedError("its pickle has no end")


@dataclass
class _Machine:
    """A pickle's stack and memory."""

    stack: list[Any] = field(default_factory=list)
    memory: dict[int, Any] = field(default_factory=dict)

    def act(self, operation: str, argument: Any) -> None:
        push, pop = self.stack.append, self.stack.pop
        match operation:
            case "PROTO":
                pass
            case "BINUNICODE" | "BININT" | "BININT1" | "BININT2" | "LONG1":
                push(argument)
            case "NONE" | "NEWTRUE" | "NEWFALSE":
                push({"NONE": None, "NEWTRUE": True, "NEWFALSE": False}[operation])
            case "EMPTY_TUPLE" | "EMPTY_LIST" | "EMPTY_DICT":
                push({"EMPTY_TUPLE": tuple, "EMPTY_LIST": list, "EMPTY_DICT": dict}[operation]())
            case "MARK":
                push(_MARK)
            case "TUPLE":
                push(tuple(self.marked()))
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                push(tuple(reversed([pop() for _ in range(int(operation[-1]))])))
            case "APPEND" | "APPENDS":
                self.append([pop()] if operation == "APPEND" else self.marked())
            case "SETITEM" | "SETITEMS":
                self.set([pop(), pop()][::-1] if operation == "SETITEM" else self.marked())
            case "BINPUT" | "LONG_BINPUT":
                self.memory[argument] = self.stack[-1]
            case "BINGET" | "LONG_BINGET":
                push(self.memory[argument])
            case "GLOBAL":
                push(_known(argument))
            case "REDUCE":
                push(_called(arguments=pop(), name=pop()))
            case "BINPERSID":
                push(_storage(*pop()))
            case "BUILD":  # an OrderedDict's attributes (`_metadata`) are not needed
                pop()
                if not isinstance(self.stack[-1], dict):
                    raise _RefusedError("its pickle builds an object")
            case _:
                raise _RefusedError(f"its pickle has the operation {operation}")

    def marked(self) -> list[Any]:
        """Takes everything above the last mark."""
        marks = [i for i, value in enumerate(self.stack) if value is _MARK]
        if not marks:
            raise _RefusedError("its pickle is damaged")
        values = self.stack[marks[-1] + 1 :]
        del self.stack[marks[-1] :]
        return values

    def append(self, values: list[Any]) -> None:
        if not isinstance(self.stack[-1], list):
            raise _RefusedError("its pickle appends to what is no list")
        self.stack[-1].extend(values)

    def set(self, values: list[Any]) -> None:
        target = self.stack[-1]
        if not isinstance(target, dict) or len(values) % 2 or not all(isinstance(key, str) for key in values[::2]):
            raise _RefusedError("it has a dictionary with keys that are no names")
        target.update(zip(values[::2], values[1::2], strict=True))


def _known(name: str) -> _Name:
    if name not in (*DTYPES, DICT, TENSOR):
        raise _RefusedError(f"its pickle names {name.replace(' ', '.', 1)}")
    return _Name(name)


def _called(*, arguments: Any, name: Any) -> Any:
    """The only two calls: an empty dictionary, and a tensor made of a part of a storage."""
    if name == _Name(DICT) and arguments == ():
        return {}
    if name != _Name(TENSOR) or not isinstance(arguments, tuple) or len(arguments) != 6:
        raise _RefusedError("its pickle calls something")
    storage, offset, size, stride, _, hooks = arguments
    if not isinstance(storage, _Storage) or hooks or not all(_counts(n) for n in (offset, *size, *stride)):
        raise _RefusedError("it has a tensor of an unknown kind")
    if len(size) != len(stride):
        raise _RefusedError("it has a tensor whose strides are not those of its size")
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    if math.prod(size) > storage.length or (math.prod(size) and last >= storage.length):
        raise _RefusedError("it has a tensor that reaches beyond its storage")
    return _View(storage, offset, tuple(size), tuple(stride))


def _storage(kind: Any, dtype: Any, key: Any, _: Any, length: Any, view: Any) -> _Storage:
    """A storage by its persistent id; its values follow after the pickles."""
    values = DTYPES.get(dtype.name) if isinstance(dtype, _Name) else None
    if kind != "storage" or values is None or not isinstance(key, str) or not _counts(length) or view is not None:
        raise _RefusedError("it has a storage of an unknown kind")
    return _Storage(key, values, length)


def _counts(value: Any) -> bool:
    return type(value) is int and value >= 0


def _storages(stream: BinaryIO, used: list[_Storage], keys: Any) -> dict[str, Tensor]:
    """The storages' values, which follow the pickles in the order of `keys` up to the file's end."""
    named = {storage.key: storage for storage in used}
    if any(named[storage.key] != storage for storage in used):
        raise _RefusedError("it has two storages of one key")
    if not isinstance(keys, list) or sorted(keys) != sorted(named):
        raise _RefusedError("its storages are not those of its tensors")
    storages = {}
    for key in keys:
        storage = named[key]
        if int.from_bytes(stream.read(8), "little") != storage.length:
            raise _RefusedError("a storage has another length than its tensors say")
        content = stream.read(storage.length * storage.dtype.itemsize)
        if len(content) != storage.length * storage.dtype.itemsize:
            raise _RefusedError("it ends too early")
        values = np.frombuffer(content, storage.dtype)
        storages[key] = torch.from_numpy(values.astype(values.dtype.newbyteorder("=")))
    if stream.read(1):
        raise _RefusedError("something follows its end")
    return storages


def _tensor(view: _View, storage: Tensor) -> Tensor:
    return storage.as_strided(view.size, view.stride, view.offset).clone(memory_format=torch.contiguous_format)

"""A local .safetensors file with a network's weights: what its metadata say, and how it fills a network that was cut.

Metadata that count: `mean` and `std` (one number or three, of pixels in 0..1), `licence` (or `license`) and `source`.
Safetensors cannot carry code, so reading a file executes none.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor, nn

from blemish.types import BlemishError

NAMED = 3  # layers in a refusal
LONGEST = 200  # characters of licence and source


@dataclass(frozen=True)
class WeightsFile:
    """A file's description: its metadata, and each tensor's shape."""

    file: Path
    metadata: dict[str, str]
    shapes: dict[str, tuple[int, ...]]

    def state(self) -> dict[str, Tensor]:
        """The tensors by name, floating point as float32."""
        from safetensors.torch import load_file

        return {key: v.float() if v.is_floating_point() else v for key, v in load_file(self.file).items()}

    def normalisation(self, what: str) -> tuple[float, float, float] | None:
        """`mean` or `std`, of pixels in 0..1, red, green and blue; None where the file does not say.

        Raises `BlemishError` where they are not one number or three, or not of pixels in 0..1."""
        text = self.metadata.get(what)
        if text is None:
            return None
        try:
            numbers = tuple(float(part) for part in text.strip("()[] ").split(","))
        except ValueError:
            numbers = ()
        if len(numbers) not in (1, 3) or not all((what == "mean" or v > 0) and 0 <= v <= 1 for v in numbers):
            raise BlemishError(
                f"{self.file}: its metadata say {what} = '{_line(text)}', which is not one number or three in 0..1; "
                f"write them anew, or give them in the backbone's name: NAME?mean=...&std=..."
            )
        red, green, blue = numbers * (3 // len(numbers))
        return red, green, blue

    @property
    def licence(self) -> str:
        stated = self.metadata.get("licence") or self.metadata.get("license")
        return _line(stated) if stated else f"see {self.file.name}"

    @property
    def source(self) -> str:
        stated = self.metadata.get("source")
        return f"{self.file.name} ({_line(stated)})" if stated else self.file.name


def describe(file: Path) -> WeightsFile:
    """Reads a file's description. Raises `BlemishError` where there is no such file or it is not a safetensors one."""
    from safetensors import SafetensorError, safe_open

    if file.suffix != ".safetensors":
        raise BlemishError(f"{file}: only .safetensors weights are read (no pickle is ever loaded); convert the file.")
    if not file.is_file():
        raise BlemishError(f"{file}: no such weights file; check the path given with --weights.")
    try:
        with safe_open(file, "pt") as opened:
            shapes = {key: tuple(opened.get_slice(key).get_shape()) for key in opened.keys()}  # noqa: SIM118
            return WeightsFile(file, dict(opened.metadata() or {}), shapes)
    except (SafetensorError, OSError) as cause:
        raise BlemishError(f"{file}: not a readable .safetensors file ({cause}); convert or copy it anew.") from cause


def put(net: nn.Module, state: dict[str, Tensor], whole: Collection[str]) -> None:
    """Puts `state` into `net`, which may be on the meta device, and of which `whole` are the parameters' names before
    it was cut: what the cut network does not use may be missing or there.

    Raises `RuntimeError` that names what it needs and `state` lacks, what no part of the network has, and what has
    another shape."""
    wanted = net.state_dict()
    lacking(key for key in wanted if key not in state and not key.endswith("num_batches_tracked"))
    if foreign := [key for key in state if key not in whole]:
        raise RuntimeError(f"they have {_named(foreign)}, which it has not")
    if other := [key for key, value in wanted.items() if key in state and state[key].shape != value.shape]:
        raise RuntimeError(f"they have another shape of {_named(other)}")
    net.load_state_dict({key: state[key] for key in wanted if key in state}, assign=True)


def lacking(missing: Iterable[str]) -> None:
    """Raises `RuntimeError` that names the missing layers, if there are any."""
    if layers := list(dict.fromkeys(key.rpartition(".")[0] or key for key in missing)):
        raise RuntimeError(f"they lack {_named(layers)}")


def unfit(name: str, weights: Path | None, cause: Exception) -> BlemishError:
    """The refusal of weights that do not fit, or, without a file, of pretrained weights that cannot be had."""
    first = _line(str(cause))[:160]
    if weights:
        return BlemishError(f"{weights}: these weights do not fit {name} ({first}); give the file made for it.")
    return BlemishError(
        f"{name}: its pretrained weights could not be downloaded ({first}); "
        "download them on a machine with internet access and give them with --weights FILE.safetensors, or use the "
        "bundled backbone."
    )


def _named(keys: Sequence[str]) -> str:
    """`a, b, c and 9 more`."""
    more = f" and {len(keys) - NAMED} more" if len(keys) > NAMED else ""
    return ", ".join(keys[:NAMED]) + more


def _line(text: str) -> str:
    """A stranger's text as one short line."""
    return " ".join(text.split())[:LONGEST]

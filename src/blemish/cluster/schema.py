"""The columns of what `blemish cluster inspect` writes. docs/cluster.md describes them; a test compares."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from blemish.types import Verdict, readable

VERSION = 1  # of SCHEMA; a column that is renamed, removed or means something else raises it
_REGION = pa.struct(
    [
        *((side, pa.int32()) for side in ("left", "top", "right", "bottom")),
        ("area", pa.float64()),
        ("peak", pa.float64()),
        ("p_value", pa.float64()),
    ]
)
MANIFEST = pa.schema([("id", pa.int64()), ("uri", pa.string()), ("bytes", pa.int64()), ("source", pa.string())])
SCHEMA = pa.schema(
    [
        ("id", pa.int64()),
        ("uri", pa.string()),
        ("source", pa.string()),
        ("decision", pa.string()),
        ("score", pa.float64()),
        ("threshold", pa.float64()),
        ("p_value", pa.float64()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("regions", pa.list_(pa.field("element", _REGION))),
        ("probability", pa.float64()),
        ("defect", pa.string()),
        ("error", pa.string()),
        ("bytes", pa.int64()),
        ("sha256", pa.string()),
        ("bundle", pa.string()),
        ("seconds", pa.float64()),
        ("node", pa.string()),
        ("overlay", pa.string()),
        ("map", pa.binary()),
        ("map_low", pa.float32()),
        ("map_high", pa.float32()),
    ],
    metadata={"blemish verdicts": str(VERSION)},
)


def part(number: int) -> str:
    """The file of the verdicts on row group `number` of the manifest.

    >>> part(12)
    'part-000012.parquet'
    """
    return f"part-{number:06}.parquet"


def number_of(name: str) -> int | None:
    """The row group of a part's name; None where it is not one."""
    digits = name.removeprefix("part-").removesuffix(".parquet")
    return int(digits) if digits.isdecimal() and part(int(digits)) == name else None


def verdict_columns(verdict: Verdict) -> dict[str, Any]:
    """The columns that say what a verdict does."""
    width, height = verdict.size or (None, None)
    boxes = [dict(zip(("left", "top", "right", "bottom"), region.box, strict=True)) for region in verdict.regions]
    return {
        "decision": verdict.decision,
        "score": verdict.score,
        "threshold": verdict.threshold,
        "p_value": verdict.p_value,
        "width": width,
        "height": height,
        "regions": [
            {**box, "area": region.area, "peak": region.peak, "p_value": region.p_value}
            for box, region in zip(boxes, verdict.regions, strict=True)
        ],
        "probability": verdict.probability,
        "defect": verdict.defect or None,
        "error": None if verdict.error is None else readable(verdict.error),  # it may name a file that is not UTF-8
    }


def map_columns(anomaly_map: npt.NDArray[np.float32]) -> dict[str, Any]:
    """An anomaly map (h, w) as a 16-bit grey PNG: 0 is `map_low`, its lowest value, and 65535 `map_high`, its highest,
    with even steps between. So a value is right to (map_high - map_low) / 131070; `map_values` gives it back."""
    low, high = float(anomaly_map.min()), float(anomaly_map.max())
    steps = (anomaly_map.astype(np.float64) - low) / ((high - low) or 1.0) * 65535
    file = io.BytesIO()
    Image.fromarray(np.rint(steps).astype(np.uint16)).save(file, "PNG")
    return {"map": file.getvalue(), "map_low": low, "map_high": high}


def map_values(png: bytes, low: float, high: float) -> npt.NDArray[np.float32]:
    """The anomaly map (h, w) of a row with the columns `map`, `map_low` and `map_high`."""
    steps = np.asarray(Image.open(io.BytesIO(png)), np.float64)
    return (low + steps / 65535 * (high - low)).astype(np.float32)


def parquet(rows: list[dict[str, Any]]) -> bytes:
    """Rows as the content of a Parquet file."""
    file = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows, SCHEMA), file, compression="zstd")
    return file.getvalue()

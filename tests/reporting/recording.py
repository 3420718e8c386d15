"""Run folders as `blemish train` writes them, without training: for tests of what reads runs."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from blemish.evaluation.bootstrap import to_json
from blemish.evaluation.detection import detection_metrics, recall_by_defect
from blemish.inference import bundle, calibration

GOOD = tuple(1 + i / 20 for i in range(19))  # of calibration: 1.00 to 1.90
THRESHOLD = calibration.threshold(np.array(GOOD), 0.05)


def verdict(
    name: str, label: str | None, score: float | None, defect: str = "", decision: str = "", **more: Any
) -> dict[str, Any]:
    """A line of `verdicts.jsonl`; an anomaly above THRESHOLD unless `decision` says otherwise."""
    decision = decision or ("anomaly" if score is not None and score > THRESHOLD else "good")
    box = {"box": [2, 3, 10, 9], "area": 40.0, "peak": 3.0}
    return {
        "path": name,
        "decision": decision,
        "score": score,
        "threshold": THRESHOLD,
        "p_value": None if score is None else float(calibration.p_values(np.array(GOOD), np.array([score]))[0]),
        "size": None if score is None else [40, 30],
        "regions": [box] if decision == "anomaly" else [],
        "error": None,
        "probability": None,
        "predicted_defect": "",
        "label": label,
        "defect": defect,
        **more,
    }


def write_run(
    folder: Path,
    verdicts: Sequence[Mapping[str, Any]],
    *,
    product: str = "plates",
    images: bool = True,
    more: Mapping[str, Any] | None = None,
    decision: Mapping[str, Any] | None = None,
    **card: Any,
) -> Path:
    """A run with these verdicts, their figures measured, and a file that is no graph. `more` goes into metrics.json."""
    (folder / "bundle").mkdir(parents=True)
    (folder / "bundle" / bundle.MODEL).write_bytes(b"no graph")
    known = [v for v in verdicts if v["label"] and v["score"] is not None]
    labels = np.array([v["label"] == "anomaly" for v in known], bool)
    flagged = np.array([v["decision"] == "anomaly" for v in known], bool)
    rule: dict[str, Any] = {
        "false_alarms": 0.05,
        "guarantee": calibration.guarantee(len(GOOD), 0.05),
        "threshold": THRESHOLD,
        "pixel_threshold": 2.0,
        "normal_median": 1.0,
        "min_area": 0.0002,
        "scores": GOOD,
        "map_maxima": GOOD,
        "color_range": (1.0, 3.0),
        **(decision or {}),
    }
    content: dict[str, Any] = {
        "created": "2026-01-02T03:04:05+00:00",
        "product": product,
        "detector": "patchcore",
        "settings": {"backbone": "bundled", "coreset": 0.1, "layers": [], "projection": 32, "random_weights": False},
        "image_size": (64, 96),
        "data": {
            "source": product,
            "layout": "mvtec",
            "train": 40,
            "calibration": len(GOOD),
            "test": len(verdicts),
            "seed": 7,
            "sha256": "ab" * 32,
        },
        "decision": rule,
        "parity": {"scores": 1e-7},
        "backbone": {"name": "bundled", "source": "drawn", "licence": "Apache-2.0"},
        "licences": {"blemish": "Apache-2.0"},
        "versions": {"python": "3.11.7", "blemish": "0.1.0"},
        **card,
    }
    bundle.write(folder / "bundle", bundle.Card.model_validate(content))
    metrics: dict[str, Any] = {
        "product": product,
        "detector": content["detector"],
        "counts": {
            "train": 40,
            "calibration": len(GOOD),
            "test_good": int((~labels).sum()),
            "test_anomaly": int(labels.sum()),
            "test_masks": 0,
        },
        "decision": {key: value for key, value in rule.items() if key not in ("scores", "map_maxima")},
    }
    if labels.any() and not labels.all():
        scores = np.array([v["score"] for v in known])
        metrics["detection"] = to_json(detection_metrics(scores, labels, flagged))
        metrics["recall_by_defect"] = to_json(recall_by_defect([v["defect"] for v in known], labels, flagged))
    (folder / "metrics.json").write_text(json.dumps({**metrics, **(more or {})}), encoding="utf-8")
    lines = "".join(json.dumps(line) + "\n" for line in verdicts)
    (folder / "verdicts.jsonl").write_text(lines, encoding="utf-8")
    for number, line in enumerate(verdicts if images else []):
        if line["size"]:
            draw(folder / f"overlays/{line['path']}.jpg", number)
    return folder


def draw(file: Path, seed: int, size: tuple[int, int] = (40, 30), noise: int = 20) -> Path:
    """An image of `size` (width, height) of noise, which compresses badly where `noise` is large."""
    file.parent.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(seed)
    pixels = 128 + random.normal(0, noise, (size[1], size[0], 3))
    Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(file, quality=95)
    return file


class Elements(HTMLParser):
    """Every start tag of a page with its attributes, and its text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    def all(self, tag: str, kind: str = "") -> list[dict[str, str | None]]:
        return [a for name, a in self.tags if name == tag and (not kind or kind in (a.get("class") or "").split())]

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())

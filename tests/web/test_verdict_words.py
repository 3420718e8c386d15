"""Verdicts in words, against what the good images of a rule count by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from blemish.inference.bundle import Decision
from blemish.types import Region
from blemish.web.tables import Image, Verdict
from blemish.web.verdict_words import ELSEWHERE, agreement, level, verdict_sentence
from tests import tiny

SHAPE = {"points": [[10, 10], [20, 10], [15, 18]]}


def verdict(p_value: float, **fields: Any) -> Verdict:
    return Verdict(decision="anomaly", score=3.0, threshold=2.0, p_value=p_value, **fields)


def rule(n: int, items: tuple[int, ...] = ()) -> Decision:
    values = tuple(float(number) for number in range(n))
    return tiny.card().decision.model_copy(update={"scores": values, "map_maxima": values, "items": items})


@pytest.mark.parametrize(
    ("p", "known", "words"),
    [
        (
            1 / 20,
            rule(19),
            "none of the 19 good images that set the threshold scored as high (p = 0.050, the smallest that 19 images "
            "can give).",
        ),
        (8 / 20, rule(19), "7 of the 19 good images that set the threshold scored as high (p = 0.400)."),
        (1.0, rule(19), "19 of the 19 good images that set the threshold scored as high (p = 1.000)."),
        # Two items of two images each, of which one image of one item scores as high: (1 + 1 / 2) / 3.
        (0.5, rule(4, (0, 0, 1, 1)), "25 % of the 2 good items that set the threshold scored as high (p = 0.500)."),
        (1 / 20, None, "its p-value among good images is p = 0.050."),
        (
            1 / 2001,
            rule(2000),
            "none of the 2000 good images that set the threshold scored as high (p < 0.001, the smallest that 2000 "
            "images can give).",
        ),
    ],
)
def test_the_p_value_is_what_was_counted(p: float, known: Decision | None, words: str) -> None:
    sentence = verdict_sentence(verdict(p), known)
    assert sentence.replace("\u00a0", " ").partition("; ")[2] == words
    assert " %" not in sentence
    assert "p\u00a0=\u00a0" in sentence or "p\u00a0<\u00a0" in sentence


@pytest.mark.parametrize(
    ("boxes", "elsewhere"),
    [
        ([[0, 0, 9, 9]], True),
        ([[0, 0, 9, 9], [21, 0, 30, 30]], True),
        ([[0, 0, 9, 9], [18, 16, 30, 30]], False),
        ([[0, 0, 40, 40]], False),
        ([[12, 12, 13, 13]], False),
        ([], False),  # no box says nothing of the place
    ],
)
def test_an_anomaly_found_at_another_place_is_called_so(boxes: list[list[int]], elsewhere: bool) -> None:
    regions = [{"box": box, "peak": 1.0, "p_value": None} for box in boxes]
    seen = verdict(0.05, regions=regions, image=Image(label="anomaly", shapes=[SHAPE]))
    assert (agreement(seen) == ELSEWHERE) is elsewhere
    seen.image.shapes = []  # a mask, or nothing
    assert agreement(seen) == "Label and verdict agree: an anomaly, and found."


def test_the_level_of_the_one_box_is_a_share_of_the_map_s_range() -> None:
    one = rule(3).model_copy(update={"boxes": "one"})
    found = np.array([[-10.0, 0.0, 10.0]], np.float32)
    assert level(Region((0, 0, 1, 1), 1.0, 10.0), one, found) == 4.0  # 0.7 of the way from -10 to 10

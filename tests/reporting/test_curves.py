import re
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import matplotlib as mpl
import numpy as np
import pytest
from sklearn.metrics import average_precision_score, precision_recall_curve, roc_auc_score, roc_curve

from blemish.evaluation.bootstrap import to_json
from blemish.evaluation.localisation import collect, localisation_metrics, pixel_figures, thresholds_for
from blemish.evaluation.reliability import balanced_weights, reliability
from blemish.reporting.curves import (
    draw_reliability,
    histogram_svg,
    pr_points,
    pr_svg,
    pro_points,
    pro_svg,
    roc_points,
    roc_svg,
)


def scores_and_labels(seed: int, ties: bool) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    labels = random.random(60) < 0.4
    scores = random.normal(labels * 1.0, 1)
    return (np.round(scores) if ties else scores), labels


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("seed", range(3))
def test_roc_points_agree_with_scikit_learn(seed: int, ties: bool) -> None:
    scores, labels = scores_and_labels(seed, ties)
    x, y = roc_points(scores, labels)
    expected_x, expected_y, _ = roc_curve(labels, scores, drop_intermediate=False)
    np.testing.assert_allclose(x, expected_x)
    np.testing.assert_allclose(y, expected_y)
    assert np.trapezoid(y, x) == pytest.approx(roc_auc_score(labels, scores))


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("seed", range(3))
def test_precision_and_recall_agree_with_scikit_learn(seed: int, ties: bool) -> None:
    scores, labels = scores_and_labels(seed, ties)
    recall, precision = pr_points(scores, labels)
    expected_precision, expected_recall, _ = precision_recall_curve(labels, scores)
    np.testing.assert_allclose(recall, expected_recall[:-1][::-1])  # theirs ends in a point of its own, (0, 1)
    np.testing.assert_allclose(precision, expected_precision[:-1][::-1])
    # Drawn as steps, with precision held from the previous recall on, the area is the average precision.
    assert (np.diff(recall, prepend=0) * precision).sum() == pytest.approx(average_precision_score(labels, scores))


def test_the_curve_of_overlap_has_aupro_as_its_area() -> None:
    random = np.random.default_rng(1)
    maps = random.normal(0, 1, (6, 20, 20)).astype(np.float32)
    mask = np.zeros((20, 20), bool)
    mask[4:9, 4:9] = mask[14:16, 12:19] = True
    maps[3:, mask] += 1.5
    masks = [None] * 3 + [mask] * 3
    pixels = collect(zip(maps, masks, [(20, 20)] * 6, strict=True), thresholds_for(list(maps), masks, [(20, 20)] * 6))
    x, y = pro_points(pixels)
    area = np.trapezoid(y, x) / 0.3
    assert area == pytest.approx(float(pixel_figures(pixels, np.ones((1, 6)))["aupro"][0]))
    labels = np.array([False] * 3 + [True] * 3)
    reported = to_json(localisation_metrics(maps, masks, labels, [()] * 6, [(20, 20)] * 6, resamples=10))
    assert area == pytest.approx(reported["aupro"]["value"])
    assert (x[0], y[0], x[-1]) == (0, 0, 0.3)
    assert (np.diff(x) >= 0).all()
    assert 'aria-label="PRO"' in pro_svg(pixels, "PRO")


def histogram(label: str = "Scores") -> str:
    good, defective = np.array([1.0, 1.1, 1.5]), np.array([2.0, 3.0])
    return histogram_svg(good, defective, np.array([1.0, 1.2]), {"threshold": 1.7}, label)


class Ids(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))


def test_figures_can_be_inlined_in_a_page() -> None:
    scores, labels = scores_and_labels(0, ties=False)
    drawn = [
        histogram(),
        roc_svg(scores, labels, (0.1, 0.5), "ROC <b>"),
        pr_svg(scores, labels, None, "Precision"),
    ]
    for svg in drawn:
        tags = Ids(svg).tags
        assert tags[0][0] == "svg"
        assert {"role", "aria-label", "viewbox"} == tags[0][1].keys()  # no size of its own, no namespace
        assert "http" not in svg
        assert "<metadata" not in svg
        assert "#15181b" not in svg  # the page's colours, or it could not be read in the dark
        assert "currentColor" in svg
        named = set(re.findall(r'id="([^"]+)"', svg))
        assert set(re.findall(r"url\(#([^)]+)\)", svg)) <= named
        assert set(re.findall(r'href="#([^"]+)"', svg)) <= named
    assert 'aria-label="ROC &lt;b&gt;"' in drawn[1]
    clips = [set(re.findall(r'clipPath id="([^"]+)"', svg)) for svg in drawn]
    assert not clips[0] & clips[1]
    assert not clips[1] & clips[2]
    assert histogram() == histogram()


def test_a_histogram_shows_every_threshold_by_its_name() -> None:
    plain = histogram()
    assert "threshold" in plain
    good = np.array([1.0, 1.0])
    band = histogram_svg(good, good, good[:0], {"review from": 1.0, "anomaly above": 2.0}, "Scores")
    assert "review from" in band
    assert "anomaly above" in band
    assert "calibration" not in band  # no held-out scores, no key to them


def test_equal_scores_can_be_drawn() -> None:
    one = np.ones(3)
    assert histogram_svg(one, one, one, {"threshold": 1.0}, "Scores").startswith("<svg")


def test_the_diagram_is_the_same_svg_every_time(tmp_path: Path) -> None:
    random = np.random.default_rng(2)
    p = random.random(200)
    labels = random.random(200) < p
    measured = reliability(p, labels, weights=balanced_weights(labels), resamples=100)
    before = {name: mpl.rcParams[name] for name in mpl.rcParams if name != "backend"}
    draw_reliability(to_json(measured), tmp_path / "a.svg", r"Costs $\5$ & <more>, " * 6)
    assert {name: mpl.rcParams[name] for name in before} == before
    with mpl.rc_context({"lines.linewidth": 9, "axes.facecolor": "red", "backend": "svg"}):  # somebody's own style
        draw_reliability(to_json(measured), tmp_path / "b.svg", r"Costs $\5$ & <more>, " * 6)
        assert mpl.rcParams["backend"] == "svg"
    text = (tmp_path / "a.svg").read_text("utf-8")
    assert text == (tmp_path / "b.svg").read_text("utf-8")
    root = ElementTree.fromstring(text)
    assert root.tag.endswith("svg")
    assert not re.search(r"dc:date|\b20\d\d-\d\d-\d\d", text)
    # One marker per bin with images.
    used = sum(b.images > 0 for b in measured.bins)
    (markers,) = [m for m in re.findall(r'<g clip-path[^>]*>(?:\s*<use[^>]*/>)+|<g>(?:\s*<use[^>]*/>){2,}', text)
                  if "#0a6a60" in m] or [""]  # fmt: skip
    assert markers.count("<use") == used


def test_a_diagram_of_nothing_is_still_a_diagram(tmp_path: Path) -> None:
    draw_reliability(to_json(reliability(np.zeros(0), np.zeros(0, bool))), tmp_path / "none.svg", "Nothing")
    assert (tmp_path / "none.svg").stat().st_size > 1000

"""The bars of the histogram, by hand."""

from __future__ import annotations

from blemish.web.histogram import BINS, HEIGHT, WIDTH, histogram, place


def test_bars_stand_where_the_scores_are() -> None:
    data = {"scores": [0.0, 1.0, 1.0], "good": [], "defective": [0.5, 100.0]}
    drawn = histogram(data)
    # 100 lies more than twice the range above the highest calibration score, 1 + 2 * 1, so it stands at the edge.
    assert (round(drawn.low, 6), round(drawn.high, 6)) == (-0.06, 3.06)
    assert drawn.clipped == 1
    calibration, good, defective = drawn.rows
    assert [bar.height for bar in calibration.bars] == [HEIGHT / 2, HEIGHT]
    assert [row.images for row in drawn.rows] == [3, 0, 2]
    assert good.bars == ()
    assert defective.bars[-1].x == round(WIDTH * (BINS - 1) / BINS, 2)
    for bar, score in zip(calibration.bars, (0.0, 1.0), strict=True):
        assert bar.x <= drawn.x(score) <= bar.x + WIDTH / BINS
        assert bar.y + bar.height == calibration.base
    assert (place(5, 0, 10), place(-5, 0, 10), place(50, 0, 10)) == (500, 0, 1000)


def test_scores_that_are_all_the_same_are_drawn() -> None:
    drawn = histogram({"scores": [1.0, 1.0], "good": [1.0], "defective": []})
    assert [len(row.bars) for row in drawn.rows] == [1, 1, 0]
    assert 0 < drawn.x(1.0) < WIDTH

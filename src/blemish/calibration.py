"""Scores of good parts -> thresholds and p-values (split conformal prediction, Vovk et al. 2005; Lei et al. 2018).

The promise: if the next good part is exchangeable with the calibration parts (made and photographed alike, none of
them seen in learning), the chance that it is called an anomaly is at most `false_alarms`, on average over calibration
sets. Nothing is assumed about the scores themselves.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from blemish.types import BlemishError

NO_PROMISE = "No share of false alarms is promised: a picture is an anomaly where the classifier finds that likelier."
_SLACK = 1e-9  # 0.05 * 20 must count as 1


def parts_needed(false_alarms: float) -> int:
    """The fewest calibration pictures that can promise this rate: 1 / (n + 1) <= false_alarms.

    Raises `BlemishError` for what is no rate.
    """
    if not 0 < false_alarms < 1:
        raise BlemishError(f"a false-alarm rate lies between 0 % and 100 %, not {false_alarms:.3%}.")
    return math.ceil(1 / false_alarms - 1 - _SLACK)


def p_values(calibration: npt.NDArray[np.floating], scores: npt.NDArray[np.floating]) -> npt.NDArray[np.float64]:
    """p = (1 + #{calibration scores >= s}) / (n + 1): `(n,)`, `(m,)` -> `(m,)` in (0, 1]. Small = unlike good parts."""
    ranked = np.sort(calibration)
    return (1 + len(ranked) - np.searchsorted(ranked, scores, side="left")) / (len(ranked) + 1)


def allowance(n: int, false_alarms: float) -> int:
    """How many of n + 1 exchangeable good parts may be called anomalies: floor(false_alarms * (n + 1)), at least 1.

    Raises `BlemishError`, with what can be had, where n is too small for the promise.
    """
    needed = parts_needed(false_alarms)
    rank = math.floor(false_alarms * (n + 1) + _SLACK)
    if rank < 1:
        raise BlemishError(
            f"{n} held-out good pictures cannot promise {false_alarms:.2%} false alarms: that takes "
            f"{needed}; add good pictures, hold out more of them with --calibration, "
            f"or ask for --false-alarms {math.ceil(1000 / (n + 1)) / 10:g}%."
        )
    return rank


def threshold(calibration: npt.NDArray[np.floating], false_alarms: float) -> float:
    """The score above which (not at which) p <= false_alarms; raises as `allowance` does."""
    return float(np.sort(calibration)[len(calibration) - allowance(len(calibration), false_alarms)])


def guarantee(n: int, false_alarms: float) -> str:
    """The promise in words, with its assumption."""
    return (
        f"At most {false_alarms:.2%} of good parts are called anomalies, on average over calibration sets of {n}, "
        "as long as new good parts are made and photographed like those (exchangeability). "
        "It says nothing of the share of defects found."
    )

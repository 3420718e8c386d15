from __future__ import annotations

from typing import Any

import numpy as np

from blemish.evaluation.bootstrap import Interval, to_json
from blemish.evaluation.cost import Prices, costs, miss_rate
from blemish.evaluation.faithfulness import Measure
from blemish.reporting.sentences import of_costs, of_faithfulness, of_misses, of_place


def test_misses_with_their_exact_interval() -> None:
    def row(missed: int, defects: int) -> dict[str, Any]:
        return {"missed": missed, "defects": defects, **to_json(miss_rate(missed, defects))}

    misses = {"all": row(2, 46), "by_defect": {"": row(0, 6), "dent": row(2, 40)}}
    assert of_misses(misses) == [
        "Missed 0 of 6 defective: 0 %; of all defects like these, 0 to 46 %.",  # 1 - 0.025^(1/6)
        "Missed 2 of 40 dent: 5 %; of all defects like these, 1 to 17 %.",
    ]


def test_places_are_said_with_their_reason() -> None:
    assert of_place({"asked": "auto", "used": True, "foreseen": 0.589, "eased": 0.72}).startswith(
        "Measured place by place: 58.9 % of how far"
    )
    assert of_place({"asked": "auto", "used": False, "foreseen": -0.01, "eased": 1.1}).startswith(
        "Measured alike at all places: 0 % of how far"
    )


def test_costs_by_hand() -> None:
    good, defective = np.array([1.0, 2.0, 3.0, 4.0]), np.array([2.5, 5.0])
    prices = Prices(false_alarm=2, miss=30, defective=0.1)
    assert of_costs(to_json(costs(4.0, good, defective, prices))) == [
        "At the guaranteed threshold, 4.000, 1000 parts cost 1500 (2 a false alarm, 30 a miss, 10 % of parts "
        "defective): 0 % false alarms among good parts, 50 % of defects missed.",
        "The cheapest threshold is 2.000, at 900.0: 50 % false alarms among good parts, 0 % of defects missed. This is "
        "an estimate on the low side, and no guarantee.",
    ]
    second = of_costs(to_json(costs(2.0, good, defective, prices)))[1]
    assert second.startswith("No threshold is cheaper on these images; 50 % false alarms")


def measure(name: str, **more: Any) -> Measure:
    facts: dict[str, Any] = {
        "lower_is_better": name == "deletion",
        "images": 8,
        "value": Interval(0.2, 0.1, 0.3),
        "controls": {"a random map": Interval(0.5, 0.4, 0.6), "a centre blob": Interval(0.4)},
        "advantage": {"a random map": Interval(0.3, 0.2, 0.4), "a centre blob": Interval(0.2, -0.1, 0.4)},
        "beats": {"a random map": True, "a centre blob": False},
        "at_random": None,
        "explains": None,
    }
    return Measure(name, **{**facts, **more})


def test_faithfulness_with_a_sentence_for_each_measure() -> None:
    measured = {
        "images": 8,
        "asked": 9,
        "calls": 500,
        "measures": to_json(
            [
                measure("deletion", explains=True),
                measure("insertion", explains=False),
                measure("inpainting", at_random=Interval(1.5, 1.25, 1.75)),
                measure("pointing", explains=True),
                measure("energy", images=5),
            ]
        ),
    }
    assert of_faithfulness(measured) == [
        "8 detected anomalies of 9 images tried, 500 runs of the detector: by 2 of 3 measures the heatmaps beat every "
        "control.",
        "Deletion: the heatmaps explain the verdicts; 0.200 [0.100, 0.300], better than each control (a random map "
        "0.500, a centre blob 0.400).",
        "Insertion: the heatmaps do not explain the verdicts; 0.200 [0.100, 0.300], not better than a centre blob "
        "(advantage 0.200 [-0.100, 0.400]).",
        "Inpainting rate: no verdict, since replacing content at random raises the score (to 1.500 [1.250, 1.750]; 1 = "
        "the image's own): the replacement itself is an anomaly to this detector.",
        "Pointing game: the heatmaps point at the defects; 0.200 [0.100, 0.300], better than each control (a random "
        "map 0.500, a centre blob 0.400).",
        "Energy inside the mask: no verdict, since it was measured on 5 images; it takes 6.",
    ]

"""What was measured, in sentences for people: missed defects, costs, and the faithfulness of heatmaps.

Each function takes the JSON form of what `evaluation/` returns.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from blemish.evaluation.cost import PARTS
from blemish.evaluation.faithfulness import FEWEST, MARKED
from blemish.reporting.figures import MEASURES, interval_of, number, percent, value_of, with_interval


def of_misses(misses: Mapping[str, Any]) -> list[str]:
    """A sentence for each defect type of `evaluate_bundle.measure`'s `misses`."""
    return [
        f"Missed {missed['missed']} of {missed['defects']} {defect or 'defective'}: {value_of(missed, percent=True)}; "
        f"of all defects like these, {interval_of(missed, percent=True)}."
        for defect, missed in misses["by_defect"].items()
    ]


def of_place(place: Mapping[str, Any]) -> str:
    """Whether distances are measured place by place, and why: `place` of a PatchCore's metrics."""
    asked = "" if place["asked"] == "auto" else ", as asked"
    why = (
        f"{percent(max(0.0, place['foreseen']))} of how far good images are from the bank is foreseen by the place, "
        f"and place by place a defect must add {place['eased']:.2f} times as much distance to be found"
    )
    return f"Measured {'place by place' if place['used'] else 'alike at all places'}{asked}: {why}."


def of_costs(costs: Mapping[str, Any]) -> list[str]:
    """Two sentences on `cost.Costs`: the guaranteed threshold, and the cheapest one."""
    prices, guaranteed, cheapest = costs["prices"], costs["guaranteed"], costs["cheapest"]
    each = (
        f"{prices['false_alarm']:g} a false alarm, {prices['miss']:g} a miss, {percent(prices['defective'])} of parts "
        "defective"
    )
    first = f"At the guaranteed threshold, {number(guaranteed['threshold'])}, {PARTS} parts cost "
    first += f"{number(guaranteed['cost'])} ({each}): {_shares(guaranteed)}."
    if cheapest["cost"] < guaranteed["cost"]:
        second = f"The cheapest threshold is {number(cheapest['threshold'])}, at {number(cheapest['cost'])}: "
        second += _shares(cheapest)
    else:
        second = f"No threshold is cheaper on these images; {_shares(guaranteed)}"
    return [first, f"{second}. This is an estimate on the low side, and no guarantee."]


def _shares(of: Mapping[str, Any]) -> str:
    return f"{percent(of['false_alarms'])} false alarms among good parts, {percent(of['missed'])} of defects missed"


def of_faithfulness(measured: Mapping[str, Any]) -> list[str]:
    """A summary of `faithfulness.Faithfulness`, then a sentence for each measure."""
    verdicts = [one["explains"] for one in measured["measures"] if one["explains"] is not None]
    summary = (
        f"{measured['images']} detected anomalies of {measured['asked']} images tried, {measured['calls']} runs of the "
        f"detector: by {sum(verdicts)} of {len(verdicts)} measures the heatmaps beat every control."
    )
    return [summary, *(f"{MEASURES[one['name']]}: {_verdict(one)}" for one in measured["measures"])]


def _verdict(measure: Mapping[str, Any]) -> str:
    claim = "point at the defects" if measure["name"] in MARKED else "explain the verdicts"
    value = with_interval(measure["value"])
    if measure["explains"] is None and measure["images"] < FEWEST:
        return f"no verdict, since it was measured on {measure['images']} images; it takes {FEWEST}."
    if measure["explains"] is None:
        at_random = with_interval(measure["at_random"])
        return (
            f"no verdict, since replacing content at random raises the score (to {at_random}; 1 = the image's own): "
            "the replacement itself is an anomaly to this detector."
        )
    if measure["explains"]:
        controls = ", ".join(f"{name} {value_of(figure)}" for name, figure in measure["controls"].items())
        return f"the heatmaps {claim}; {value}, better than each control ({controls})."
    equals = ", ".join(
        f"{name} (advantage {with_interval(measure['advantage'][name])})"
        for name, better in measure["beats"].items()
        if not better
    )
    return f"the heatmaps do not {claim}; {value}, not better than {equals}."

"""The verdicts of a run for other programs: JUnit XML for a build server, CSV for a spreadsheet."""

from __future__ import annotations

import csv
import io
import re
from collections import Counter
from xml.etree import ElementTree

from blemish.reporting.run import OUTCOMES, Picture, Recorded

# What XML 1.0 cannot hold, not even escaped.
_NOT_XML = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
# What a spreadsheet would take for the beginning of a formula.
_FORMULA = ("=", "+", "-", "@", "\t", "\r")
COLUMNS = (
    "picture",
    "label",
    "defect",
    "verdict",
    "outcome",
    "score",
    "limit",
    "p_value",
    "probability",
    "said",
    "boxes",
    "error",
)


def junit(run: Recorded) -> str:
    """Each test picture as a test case: missed defects and false alarms fail, what could not be read is an error, what
    is left to a person is skipped."""
    outcomes = Counter(picture.outcome for picture in run.pictures)
    counts = {
        "tests": str(len(run.pictures)),
        "failures": str(outcomes["missed"] + outcomes["false-alarm"]),
        "errors": str(outcomes["error"]),
        "skipped": str(outcomes["review"]),
    }
    root = ElementTree.Element("testsuites", {"name": "blemish", **counts})
    name, created = _xml(run.card.product), _xml(run.card.created)
    suite = ElementTree.SubElement(root, "testsuite", {"name": name, "timestamp": created, "time": "0", **counts})
    for picture in run.pictures:
        kind = picture.defect or picture.label or "unlabelled"
        case = {"classname": _xml(f"{run.card.product}.{kind}"), "name": _xml(picture.shown), "time": "0"}
        element = ElementTree.SubElement(suite, "testcase", case)
        says = _xml(_says(picture))
        if picture.outcome in ("missed", "false-alarm"):
            ElementTree.SubElement(element, "failure", {"type": picture.outcome, "message": says}).text = says
        elif picture.outcome == "error":
            ElementTree.SubElement(element, "error", {"type": "unreadable", "message": says}).text = says
        elif picture.outcome == "review":
            ElementTree.SubElement(element, "skipped", {"message": says})
    ElementTree.indent(root, " ")
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + ElementTree.tostring(root, encoding="unicode") + "\n"


def _says(picture: Picture) -> str:
    if picture.outcome == "error":
        return picture.error or "could not be read"
    what = {
        "missed": f"{picture.defect or 'defective'}, called good",
        "false-alarm": "good, called an anomaly",
        "review": "left to a person",
    }.get(picture.outcome, picture.outcome)
    return f"{what}: score {_figure(picture.score)}, limit {_figure(picture.threshold)}"


def table(run: Recorded) -> str:
    """One row a picture under a row of `COLUMNS`. A text that a spreadsheet would run as a formula begins with '."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(COLUMNS)
    for picture in run.pictures:
        texts = (picture.shown, picture.label or "", picture.defect, picture.decision, OUTCOMES[picture.outcome])
        figures = (picture.score, picture.threshold, picture.p_value, picture.probability)
        numbers = ["" if value is None else repr(value) for value in figures]
        last = (_cell(picture.said), len(picture.regions), _cell(picture.error or ""))
        writer.writerow([*map(_cell, texts), *numbers, *last])
    return file.getvalue()


def _cell(text: str) -> str:
    clean = text.encode("utf-8", "replace").decode()
    return f"'{clean}" if clean.startswith(_FORMULA) else clean


def _xml(text: str) -> str:
    return _NOT_XML.sub("\ufffd", text)


def _figure(value: float | None) -> str:
    return "none" if value is None else f"{value:.4g}"

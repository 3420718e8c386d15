"""The verdicts of a run for other programs: JUnit XML for a build server, CSV for a spreadsheet."""

from __future__ import annotations

import csv
import io
import re
from collections import Counter
from collections.abc import Sequence
from xml.etree import ElementTree

from blemish.reporting.figures import number
from blemish.reporting.run import OUTCOMES, JudgedImage, Recorded

# What XML 1.0 cannot hold, not even escaped.
_NOT_XML = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
# Characters with which a formula of a spreadsheet begins; the last four are the wide ones of East Asian keyboards.
_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "\uff1d", "\uff0b", "\uff0d", "\uff20")
MARK = "\ufeff"  # without this byte order mark, Excel reads UTF-8 as the machine's old encoding
JUNIT = '<testsuites name="blemish"'  # how these files begin
COLUMNS = (
    "image",
    "label",
    "defect",
    "verdict",
    "outcome",
    "score",
    "threshold",
    "p_value",
    "probability",
    "predicted_defect",
    "boxes",
    "error",
)
CSV = ",".join(COLUMNS)


def junit(run: Recorded) -> str:
    """JUnit XML with each test image as a test case: missed defects and false alarms are failures, unreadable images
    errors, images left to a person skipped."""
    outcomes = Counter(image.outcome for image in run.images)
    counts = {
        "tests": str(len(run.images)),
        "failures": str(outcomes["missed"] + outcomes["false-alarm"]),
        "errors": str(outcomes["error"]),
        "skipped": str(outcomes["review"]),
    }
    root = ElementTree.Element("testsuites", {"name": "blemish", **counts})
    name, created = _xml(run.card.product), _xml(run.card.created)
    suite = ElementTree.SubElement(root, "testsuite", {"name": name, "timestamp": created, "time": "0", **counts})
    for image in run.images:
        kind = image.defect or image.label or "unlabelled"
        case = {"classname": _xml(f"{run.card.product}.{kind}"), "name": _xml(image.shown), "time": "0"}
        element = ElementTree.SubElement(suite, "testcase", case)
        message = _xml(_message(image))
        if image.outcome in ("missed", "false-alarm"):
            ElementTree.SubElement(element, "failure", {"type": image.outcome, "message": message}).text = message
        elif image.outcome == "error":
            ElementTree.SubElement(element, "error", {"type": "unreadable", "message": message}).text = message
        elif image.outcome == "review":
            ElementTree.SubElement(element, "skipped", {"message": message})
    ElementTree.indent(root, " ")
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + ElementTree.tostring(root, encoding="unicode") + "\n"


def _message(image: JudgedImage) -> str:
    if image.outcome == "error":
        return image.error or "could not be read"
    what = {
        "missed": f"{image.defect or 'defective'}, called good",
        "false-alarm": "good, called an anomaly",
        "review": "left to a person",
    }.get(image.outcome, image.outcome)
    return f"{what}: score {number(image.score)}, threshold {number(image.threshold)}"


def table(run: Recorded) -> str:
    """CSV (RFC 4180, but lines end with LF) with a row for each image under a row of `COLUMNS`, after a byte order
    mark, so that Excel shows every name. A text that a spreadsheet would run as a formula gets an apostrophe in
    front."""
    rows = [_row(COLUMNS)]
    for image in run.images:
        texts = (image.shown, image.label or "", image.defect, image.decision, OUTCOMES[image.outcome])
        figures = (image.score, image.threshold, image.p_value, image.probability)
        numbers = ["" if value is None else repr(value) for value in figures]  # every digit, for programs
        last = (_cell(image.predicted_defect), len(image.regions), _cell(image.error or ""))
        rows.append(_row([*map(_cell, texts), *numbers, *last]))
    return MARK + "".join(rows)


def _row(cells: Sequence[str | int]) -> str:
    # With LF as its end of a line, the writer would not quote a name with CR.
    line = io.StringIO(newline="")
    csv.writer(line).writerow(cells)
    return line.getvalue().removesuffix("\r\n") + "\n"


def _cell(text: str) -> str:
    clean = text.encode("utf-8", "replace").decode()
    return f"'{clean}" if clean.startswith(_FORMULA) else clean


def _xml(text: str) -> str:
    return _NOT_XML.sub("\ufffd", text)

"""The figures that stand on every page, and how they are written for people."""

from __future__ import annotations

FIGURES = (
    ("detection", "auroc", "Image AUROC", "how often a defective part scores above a good one"),
    ("detection", "average_precision", "Average precision", "of images, ranked by score"),
    ("detection", "f1", "F1 at the threshold", "finds and false alarms in one figure"),
    ("detection", "balanced_accuracy", "Balanced accuracy", "good and defective parts count alike"),
    ("detection", "miss_rate", "Missed", "defective parts called good"),
    ("detection", "false_alarm_rate", "False alarms", "good parts called anomalies"),
    ("localisation", "pixel_auroc", "Pixel AUROC", "the same question, asked of pixels"),
    ("localisation", "aupro", "AUPRO", "overlap with each defect, up to 30 % false pixels"),
    ("localisation", "defects_hit", "Defects hit", "drawn defects that a box points at"),
    ("localisation", "boxes_right", "Boxes right", "boxes that point at a drawn defect"),
)
IN_PERCENT = ("miss_rate", "false_alarm_rate")

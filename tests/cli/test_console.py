import pytest

from blemish.cli.console import figures_table, products_table, progress, suspected, sweep_table
from blemish.cli.tables import console


def printed(table: object, width: int) -> str:
    page = console()
    page.width = width
    with page.capture() as captured:
        page.print(table)
    return captured.get()


def figure(value: float | None, low: float | None = None, high: float | None = None) -> dict[str, float | None]:
    return {"value": value, "low": low, "high": high}


METRICS = {
    "product": "washer",
    "detector": "patchcore",
    "counts": {"train": 61, "calibration": 19, "test_good": 20, "test_anomaly": 42},
    "detection": {
        "auroc": figure(0.952, 0.898, 0.989),
        "miss_rate": figure(0.214, 0.12, 0.36),
        "false_alarm_rate": figure(0.0, 0.0, 0.161),
        "confusion": {"caught": 1},
    },
    "localisation": {
        "pixel_auroc": figure(0.985, 0.9, 1.0),
        "aupro": figure(None),
        "defects_hit": figure(0.8, 0.7, 0.9),
        "boxes": 3,
    },
}


def page(table: object) -> str:
    return printed(table, 80)


def test_the_table_of_products_fits_80_columns() -> None:
    lines = page(products_table([METRICS])).splitlines()
    assert max(map(len, lines)) <= 80
    row = next(i for i, line in enumerate(lines) if "washer" in line)
    assert [cell.strip() for cell in lines[row].strip("│").split("│")] == [
        *("washer", "0.952", "0.985", "–", "80 %", "21 %", "0 %"),
    ]
    assert ".898–.989" in lines[row + 1]
    assert ".900–1 " in lines[row + 1]
    assert "70–90" in lines[row + 1]
    long = page(products_table([{**METRICS, "product": "a-name-of-26-letters-in-all"}]))
    assert max(map(len, long.splitlines())) <= 80
    assert "…" not in long


def test_the_table_of_figures_leaves_out_what_is_undefined() -> None:
    text = page(figures_table(METRICS))
    assert "0.898 to 0.989" in text
    assert "12 to 36 %" in text
    assert "Pixel AUROC" in text
    assert "AUPRO" not in text
    assert "onfusion" not in text
    assert "61 good" in text


def test_cross_validation_has_its_folds_below_the_table() -> None:
    crossed = {**METRICS, "folds": 5, "repeats": 2, "by_fold": {"balanced_accuracy": {"mean": 0.9, "std": 0.012}}}
    text = page(figures_table(crossed, crossed=True))
    assert "out of" in text
    assert "5 folds, 2 times" in text
    assert "0.900 ± 0.012" in text


def test_suspects_are_named_up_to_a_number() -> None:
    names = ["a.png", "b.png", "c.png"]
    suspects = [{"name": name, "given": "good", "likely": "dent", "sure": 0.1} for name in names]
    assert suspected({"suspects": []}) == ["No image looks mislabelled."]
    assert suspected({"suspects": suspects[:1]}) == [
        "This image is probably mislabelled; look again:",
        "  a.png: labelled good, looks like dent",
    ]
    assert suspected({"suspects": suspects}, most=1)[::2] == [
        "These 3 images are probably mislabelled; look again:",
        "  and 2 more, see metrics.json",
    ]


def test_progress_in_a_log_has_a_line_with_number_and_time(capsys: pytest.CaptureFixture[str]) -> None:
    assert list(progress(range(3), "features", 3)) == [0, 1, 2]
    assert capsys.readouterr().err.startswith("features: 3 in ")


def test_the_table_of_a_sweep() -> None:
    def candidate(coreset: str, choice: float, std: float | None, error: str = "") -> dict[str, object]:
        options = {"coreset": coreset, "max_bank": "[50]"}
        figures = {} if error else {"choice": choice, "image_auroc": 0.9, "pixel_auroc": 0.8, "aupro": 0.7}
        return {"options": options, "seeds": ["0"], "figures": figures, "std": std, "seconds": 12.4, "error": error}

    given = [candidate("0.1", 0.85, 0.02), candidate("0.2", 0.84, None), candidate("0.3", 0, None, "no [memory]")]
    text = page(sweep_table(given))
    assert "On the validation split, max_bank [50]" in text
    assert "0.850 ± 0.020 │ 0.900 │ 0.800 │ 0.700 │     1 │ 12" in text
    assert "0.2     │         0.840 │" in text
    assert "failed" in text
    assert "no [memory]" in text
    short_text = page(sweep_table(given, most=1))
    assert "0.840" not in short_text
    assert "and 2 more, see sweep.csv" in short_text

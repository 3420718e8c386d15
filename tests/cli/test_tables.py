from __future__ import annotations

import io

import pytest
from rich.table import Table
from rich.text import Text

from blemish.cli.console import figures_table, products_table
from blemish.cli.tables import console, fits, listed
from tests.cli.test_console import METRICS, printed


def table(*rows: tuple[str, ...], names: tuple[str, ...] = ("image", "score")) -> Table:
    made = Table(*names, title="[b]title")
    for row in rows:
        made.add_row(*row)
    return made


@pytest.mark.parametrize("width", [1, 20, 40])
def test_where_the_columns_do_not_fit_every_figure_has_a_line(width: int) -> None:
    for made in (figures_table(METRICS), products_table([METRICS])):
        assert not fits(made, 20)
        if not fits(made, width):
            lines = printed(made, width).splitlines()
            assert lines == listed(made)
    figures = printed(figures_table(METRICS), 1)
    for line in ("Figure: Image AUROC", "Value: 0.952", "95 % interval: 0.898 to 0.989", "Value: 21 %"):
        assert line in figures.splitlines()
    assert "tested on 20 good and 42 defective" in figures


def test_a_table_fits_by_its_words_as_wide_as_they_are_shown() -> None:
    assert fits(table(("a.png", "0.5")), len("│ image │ score │"))
    assert not fits(table(("a.png", "0.5")), len("│ image │ score │") - 1)
    assert not fits(table(("零件零件.png", "0.5")), 20)  # 12 cells for 8 characters: 12 + 5 and 7 for the lines
    assert fits(table(("零件零件.png", "0.5")), 24)
    folded = Table()
    folded.add_column("name", overflow="fold")
    folded.add_row("x" * 100)
    assert fits(folded, 16)
    fixed = Table()
    fixed.add_column("name", no_wrap=True)
    fixed.add_row("two words\nlonger words")
    assert fits(fixed, 16)
    assert not fits(fixed, 15)


def test_names_are_text_and_no_commands() -> None:
    name = "[red]a[/] :smile: \x1b[2J\u202e"
    for width in (80, 10):
        page = printed(table((name, "1")), width)
        assert "[b]title" in page
        assert "[red]a[/] :smile: \\x1b[2J\\u202e" in page
        assert "\x1b" not in page
    assert printed(Text(f"error: {name}\nforged"), 80) == "error: [red]a[/] :smile: \\x1b[2J\\u202e\\nforged\n"
    assert printed("no\nforged", 80) == "no\\nforged\n"


def test_boxes_are_ascii_where_the_encoding_has_no_others() -> None:
    for encoding in ("ascii", "cp1252", "latin-1"):
        page = console()
        page.file = io.TextIOWrapper(io.BytesIO(), encoding)
        page.width = 60
        page.print(table(("a.png", "0.5")))  # raises nothing
        page.file.flush()
        assert "| a.png | 0.5   |" in page.file.buffer.getvalue().decode(encoding)


def test_a_sentence_on_a_narrow_terminal_is_not_cut() -> None:
    assert printed("a sentence of more than ten columns", 10) == "a sentence of more than ten columns\n"

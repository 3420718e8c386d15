"""The commands that generate images: `corrupt` and `demo`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from blemish.cli.words import say_json
from blemish.types import BlemishError


def corrupt(
    data: Annotated[Path, typer.Argument(help="A folder of images or of idx files, or the word fashion-mnist.")],
    out: Annotated[Path, typer.Option("-o", "--out", help="Folder to write; it must not exist.")],
    one_class: Annotated[int | None, typer.Option(help="With idx files: the class that counts as good.")] = None,
    kinds: Annotated[str, typer.Option(help="Kinds of defects, separated by commas.")] = "rectangle,crop,foreign",
    train: Annotated[int | None, typer.Option(min=1, help="Number of training images at most.")] = None,
    test: Annotated[int | None, typer.Option(min=2, help="Number of test images at most, half of them good.")] = None,
    layout: Annotated[str, typer.Option(help="Read the folder as this layout.")] = "auto",
    seed: Annotated[int, typer.Option(min=0, help="Same seed, same images.")] = 0,
    overwrite: Annotated[bool, typer.Option(help="Replace the folder if this command wrote it.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False,
) -> None:
    """Make a data set with synthetic defects and their masks from good images alone."""
    from blemish.cli.console import out as page
    from blemish.cli.console import progress
    from blemish.data.synthetic import write_corrupted

    if str(data) == "fashion-mnist" and not data.exists():
        from blemish.data.fashion_mnist import fashion_mnist

        data = fashion_mnist()
    card = write_corrupted(
        data,
        out,
        layout=layout,
        one_class=one_class,
        train=train,
        test=test,
        seed=seed,
        kinds=[kind.strip() for kind in kinds.split(",")],
        overwrite=overwrite,
        progress=progress,
    )
    if as_json:
        say_json(card, indent=1)
        return
    for folder, count in card["counts"].items():
        page.print(f"{folder:<16} {count:>6}")
    if card["skipped"]:
        page.print(f"Left out, because unreadable: {', '.join(card['skipped'])}.", soft_wrap=True)
    page.print(f"Written to {out}. Next: blemish train {out} -o RUN", soft_wrap=True)


def demo(
    out: Annotated[Path, typer.Option("-o", "--out", help="Folder to write.")] = Path("demo"),
    quick: Annotated[bool, typer.Option(help="Fewer and smaller images; takes about a minute.")] = False,
    draw: Annotated[str, typer.Option(help="Only draw one product: flange, cloth, board, or panel (4000x3000).")] = "",
) -> None:
    """Draw synthetic products, train and test a detector for each, and write a page with the results."""
    from blemish.cli.console import out as page
    from blemish.cli.console import products_table, progress

    if draw:
        from blemish.demo.line import PRODUCTS, write_line
        from blemish.demo.panel import write_panel
        from blemish.demo.run import own_folder

        options: dict[str, Any]
        if draw not in (*PRODUCTS, "panel"):
            raise BlemishError(f"--draw takes {', '.join(PRODUCTS)} or panel, not '{draw}'.")
        with own_folder(out):
            if draw == "panel":
                options = {"size": (1000, 750), "good": 4, "defective": 1} if quick else {}
                folder = write_panel(out / "data", progress=progress, **options)
            else:
                options = {"size": 256, "train": 30, "good": 8, "defective": 2} if quick else {"train": 80}
                folder = write_line(out / "data", products=[draw], progress=progress, **options)[0]
        page.print(f"Drawn in {folder}. Next: blemish train {folder} -o RUN", soft_wrap=True)
        return
    from blemish.demo.run import run_demo

    runs = run_demo(out, quick=quick, progress=progress)
    page.print(products_table(runs, title="The demo line, on held-out images [95 % interval]"))
    page.print(f"Look at {out / 'index.html'}", soft_wrap=True)
    beside = out.with_name(f"{out.name}-page")
    page.print(
        f"Inspect, review, learn again: blemish serve {out} --data {beside} --open", soft_wrap=True, markup=False
    )

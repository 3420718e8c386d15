"""The commands that learn: one short function each, registered by `cli`. PyTorch is imported only when one runs."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from blemish.types import BlemishError

WARNINGS = 5  # of a data set, shown after learning


def train(
    data: Annotated[Path, typer.Argument(help="A folder of images; see `blemish data`.")],
    out: Annotated[Path, typer.Option("-o", "--out", help="Folder to write; it must not exist.")],
    detector: Annotated[
        str, typer.Option(help="patchcore or attention (good images), or cam (good and defective ones).")
    ] = "",
    recipe: Annotated[str, typer.Option(help="case-study: the published settings, of cam or attention.")] = "",
    false_alarms: Annotated[str, typer.Option(help="Share of good parts that may be flagged: 5% or 0.05.")] = "5%",
    review: Annotated[str, typer.Option(help="Share of good parts flagged or put aside for a person: 10%.")] = "",
    confidence: Annotated[str, typer.Option(help="Of the guarantee, over calibration sets: 95%.")] = "",
    calibrate: Annotated[str, typer.Option(help="auto, split, or leave-one-out.")] = "auto",
    image_size: Annotated[str, typer.Option(help="auto, 256, or HEIGHTxWIDTH.")] = "auto",
    tile: Annotated[int, typer.Option(min=0, help="See images in tiles of so many pixels, as 512.")] = 0,
    overlap: Annotated[int, typer.Option(min=0, help="Pixels that tiles overlap by.")] = 64,
    roi: Annotated[Path | None, typer.Option(help="Where images count: a mask, or .json with polygons.")] = None,
    align: Annotated[bool, typer.Option(help="Bring shifted and turned parts to lie alike.")] = False,
    calibration: Annotated[float, typer.Option(help="Share of good images held out for the threshold.")] = 0.2,
    test: Annotated[float, typer.Option(help="Share of good images for the test, if the folder has no test.")] = 0.2,
    min_area: Annotated[float, typer.Option(help="Smallest region, as a share of the image.")] = 0.0002,
    layout: Annotated[str, typer.Option(help="Read the folder as this layout.")] = "auto",
    seed: Annotated[int, typer.Option(help="Same seed, same split, same detector.")] = 0,
    overlays: Annotated[int, typer.Option(min=0, help="Draw at most so many test images.")] = 300,
    no_evidence: Annotated[bool, typer.Option("--no-evidence", help="The bundle carries no images.")] = False,
    evidence_size: Annotated[float, typer.Option(min=0, help="MB of good images in the bundle at most.")] = 8.0,
    overwrite: Annotated[bool, typer.Option(help="Replace the folder if it exists.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print metrics.json instead of a table.")] = False,
    # The detector's own; None is its default.
    backbone: Annotated[str | None, typer.Option(help="bundled, a timm name, or torchvision/NAME.")] = None,
    weights: Annotated[Path | None, typer.Option(help="A local .safetensors file for the backbone.")] = None,
    random_weights: Annotated[bool | None, typer.Option(help="An untrained backbone, as a control.")] = None,
    layers: Annotated[str | None, typer.Option(help="Feature layers, separated by commas.")] = None,
    memory: Annotated[float | None, typer.Option(min=0.001, help="GiB for features while learning.")] = None,
    device: Annotated[str | None, typer.Option(help="cpu or cuda.")] = None,
    patch_size: Annotated[int | None, typer.Option(min=1, help="A patch is so many cells wide; odd.")] = None,
    coreset: Annotated[float | None, typer.Option(min=0, max=1, help="Share of patches kept in the bank.")] = None,
    max_bank: Annotated[int | None, typer.Option(min=1, help="Never more patches than this.")] = None,
    neighbours: Annotated[int | None, typer.Option(min=1, help="Neighbours that reweight the score.")] = None,
    classes: Annotated[str | None, typer.Option(help="binary, or types: good and each defect type.")] = None,
    unfreeze: Annotated[int | None, typer.Option(min=0, help="Last stages trained; 0 = the head alone.")] = None,
    pool: Annotated[str | None, typer.Option(help="mean, moments or deviations.")] = None,
    outputs: Annotated[int | None, typer.Option(min=1, max=2, help="Of the head, for two classes.")] = None,
    head_weights: Annotated[str | None, typer.Option(help="auto, or each class's: 1,3.")] = None,
    augmentations: Annotated[str | None, typer.Option(help="What a part may do: rotate,flip,shift,brighten.")] = None,
    epochs: Annotated[int | None, typer.Option(min=1, help="At most so many.")] = None,
    batch: Annotated[int | None, typer.Option(min=1, help="Images in a step.")] = None,
    rate: Annotated[float | None, typer.Option(min=0, help="Learning rate.")] = None,
    stop_at: Annotated[float | None, typer.Option(help="Training accuracy at which to stop; 2 = never.")] = None,
    map_method: Annotated[
        str | None, typer.Option("--map", help="cam: cam, gradcam, ...; attention: residual, attention, combined.")
    ] = None,
    map_layer: Annotated[str | None, typer.Option(help="Layer of a gradient's map.")] = None,
    model: Annotated[str | None, typer.Option(help="unet, autoencoder, vae or resnet.")] = None,
    pretrained: Annotated[bool | None, typer.Option(help="The resnet starts from ImageNet's weights.")] = None,
    width: Annotated[int | None, typer.Option(min=1, help="Channels of an autoencoder's first layers.")] = None,
    latent: Annotated[int | None, typer.Option(min=1, help="Numbers in an autoencoder's code.")] = None,
    beta: Annotated[float | None, typer.Option(min=0, help="Weight of the vae's divergence.")] = None,
    loss: Annotated[str | None, typer.Option(help="mse, l1, bce, ssim, or a sum: 0.8*mse+0.2*ssim.")] = None,
    layer: Annotated[str | None, typer.Option(help="Encoder layer that attends: encoder.21.")] = None,
    attention_loss: Annotated[str | None, typer.Option(help="mean, mean-std or none.")] = None,
    attention_weight: Annotated[float | None, typer.Option(min=0, help="Of the attention in the loss.")] = None,
    alternate: Annotated[bool | None, typer.Option(help="The attention loss takes steps of its own.")] = None,
    corruption: Annotated[
        str | None, typer.Option(help="What is to be inpainted: patches, mask, noise, blur, none.")
    ] = None,
    attend_to: Annotated[str | None, typer.Option("--input", help="image, difference or residual.")] = None,
    residual: Annotated[str | None, typer.Option(help="ssim or l1.")] = None,
    standardise: Annotated[str | None, typer.Option(help="Maps by good images, at each place or whole.")] = None,
    score: Annotated[str | None, typer.Option(help="Of an image: auto, max, or top (mean of 1 %).")] = None,
    decide: Annotated[str, typer.Option(help="guarantee: keep --false-alarms; class: the likelier one.")] = "",
    boxes: Annotated[str, typer.Option(help="hills, or one: the published single box.")] = "",
    folds: Annotated[int, typer.Option(min=0, help="Cross-validate the classifier in so many folds.")] = 0,
    repeats: Annotated[int, typer.Option(min=1, help="So many times.")] = 1,
    processes: Annotated[int | None, typer.Option(min=1, help="Train in so many processes.")] = None,
    log: Annotated[str | None, typer.Option(help="tensorboard or wandb: keep the losses of every epoch.")] = None,
    resume: Annotated[bool, typer.Option(help="Go on where a killed training stopped.")] = False,
) -> None:
    """Learn a detector from a folder of images, test it, and write its bundle."""
    from rich.markup import escape

    from blemish.cli.console import err, figures_table, progress, suspected
    from blemish.cli.console import out as page
    from blemish.training.pipeline import TrainConfig
    from blemish.training.pipeline import train as learn
    from blemish.training.settings import settings_for

    asked = {
        "backbone": backbone,
        "weights": weights,
        "random_weights": random_weights,
        "layers": layers,
        "memory": memory,
        "device": device,
        "patch_size": patch_size,
        "coreset": coreset,
        "max_bank": max_bank,
        "neighbours": neighbours,
        "classes": classes,
        "unfreeze": unfreeze,
        "pool": pool,
        "outputs": outputs,
        "head_weights": head_weights,
        "may": augmentations,
        "epochs": epochs,
        "batch": batch,
        "rate": rate,
        "stop_at": stop_at,
        "map": map_method,
        "map_layer": map_layer,
        "model": model,
        "pretrained": pretrained,
        "width": width,
        "latent": latent,
        "beta": beta,
        "loss": loss,
        "layer": layer,
        "attention_loss": attention_loss,
        "attention_weight": attention_weight,
        "alternate": alternate,
        "corruption": corruption,
        "input": attend_to,
        "residual": residual,
        "standardise": standardise,
        "score": score,
        "processes": processes,
        "log": log,
    }
    published = recipe == "case-study"
    if recipe and not published:
        raise BlemishError(f"there is no recipe '{recipe}'; there is case-study.")
    detector = detector or ("cam" if published else "patchcore")
    by_class = published and detector == "cam"  # decided by class, from one split of all images
    config = TrainConfig(
        data=data,
        out=out,
        settings=replace(settings_for(detector, asked, published=published), seed=seed),
        detector=detector,
        image_size=_size(image_size) or ((224, 224) if by_class else None),
        tile=tile,
        overlap=overlap,
        roi=roi,
        align=align,
        layout=layout,
        false_alarms=share(false_alarms),
        review=share(review) if review else None,
        confidence=share(confidence) if confidence else None,
        calibrate=_one_of("--calibrate", calibrate, "auto", ("auto", "split", "leave-one-out")),
        test=test,
        calibration=0.0 if by_class else calibration,
        min_area=min_area,
        seed=seed,
        overlays=overlays,
        evidence=not no_evidence,
        evidence_size=evidence_size,
        overwrite=overwrite,
        decide=_one_of("--decide", decide, "class" if by_class else "guarantee", ("guarantee", "class")),
        boxes=_one_of("--boxes", boxes, "one" if by_class else "regions", ("regions", "one")),
        pooled=by_class,
        folds=folds,
        repeats=repeats,
        resume=resume,
    )
    run = learn(config, progress)
    for warning in run.warnings[:WARNINGS]:
        err.print(f"[yellow]warning:[/] {escape(warning)}", soft_wrap=True)
    if len(run.warnings) > WARNINGS:
        err.print(f"and {len(run.warnings) - WARNINGS} more; see: blemish data {data}", soft_wrap=True, markup=False)
    if as_json:
        typer.echo(json.dumps(run.metrics, indent=1))
        return
    page.print(figures_table(run.metrics))
    if crossed := run.metrics.get("cross_validation"):
        page.print(figures_table({**run.metrics, **crossed}, crossed=True))
        for line in suspected(crossed):
            page.print(line, soft_wrap=True, markup=False)
    page.print(run.metrics["decision"]["guarantee"], soft_wrap=True)
    page.print(f"Written to {run.folder}. Next: blemish inspect {run.folder}/bundle IMAGES --out DIR", soft_wrap=True)


def sweep(
    data: Annotated[Path, typer.Argument(help="A folder of images; see `blemish data`.")],
    out: Annotated[Path, typer.Option("-o", "--out", help="Folder to write; a sweep that is there is gone on with.")],
    grid: Annotated[str, typer.Option(help="Options and values: model=unet,vae;seed=0,1.")],
    detector: Annotated[str, typer.Option(help="attention or patchcore.")] = "attention",
    image_size: Annotated[str, typer.Option(help="auto, 256, or HEIGHTxWIDTH, where the grid has none.")] = "auto",
    false_alarms: Annotated[str, typer.Option(help="Share of good parts that may be flagged: 5% or 0.05.")] = "5%",
    validation: Annotated[float, typer.Option(help="Share of the training images held out for choosing.")] = 0.2,
    layout: Annotated[str, typer.Option(help="Read the folder as this layout.")] = "auto",
    seed: Annotated[int, typer.Option(help="Of the split; of the detector, where the grid has none.")] = 0,
    no_test: Annotated[bool, typer.Option("--no-test", help="Choose, and leave the test part alone.")] = False,
    no_evidence: Annotated[bool, typer.Option("--no-evidence", help="The bundle carries no images.")] = False,
    overwrite: Annotated[bool, typer.Option(help="Begin anew if the folder exists.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False,
) -> None:
    """Try many settings of a detector, choose the best without the test part, then train and test that one."""
    from rich.markup import escape

    from blemish.cli.console import err, figures_table, progress, sweep_table
    from blemish.cli.console import out as page
    from blemish.training.sweep import RULE, SweepConfig, shown
    from blemish.training.sweep import sweep as run_sweep

    config = SweepConfig(
        data=data,
        out=out,
        grid=grid,
        detector=detector,
        image_size=_size(image_size),
        layout=layout,
        false_alarms=share(false_alarms),
        validation=validation,
        seed=seed,
        test=not no_test,
        evidence=not no_evidence,
        overwrite=overwrite,
    )
    done = run_sweep(config, progress)
    for warning in done.warnings[:WARNINGS]:
        err.print(f"[yellow]warning:[/] {escape(warning)}", soft_wrap=True)
    found = done.to_json()
    if as_json:
        typer.echo(json.dumps(found, indent=1))
        return
    page.print(sweep_table(found["candidates"]))
    page.print(f"Chosen: {shown(done.chosen)} ({RULE}).", soft_wrap=True, markup=False)
    if done.metrics is None:
        page.print(f"Written to {out}. The test part was not looked at.", soft_wrap=True, markup=False)
        return
    page.print(figures_table(done.metrics))
    page.print(done.metrics["decision"]["guarantee"], soft_wrap=True)
    page.print(f"Written to {out}. Next: blemish inspect {out}/chosen IMAGES --out DIR", soft_wrap=True, markup=False)


def corrupt(
    data: Annotated[Path, typer.Argument(help="A folder of images or of idx files, or the word fashion-mnist.")],
    out: Annotated[Path, typer.Option("-o", "--out", help="Folder to write; it must not exist.")],
    one_class: Annotated[int | None, typer.Option(help="Of idx files: the class that is good.")] = None,
    kinds: Annotated[str, typer.Option(help="Of defects, separated by commas.")] = "rectangle,crop,foreign",
    train: Annotated[int | None, typer.Option(min=1, help="At most so many images to learn from.")] = None,
    test: Annotated[int | None, typer.Option(min=2, help="At most so many to test on, half of them good.")] = None,
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
        typer.echo(json.dumps(card, indent=1))
        return
    for folder, count in card["counts"].items():
        page.print(f"{folder:<16} {count:>6}", markup=False)
    if card["skipped"]:
        page.print(f"Left out, because unreadable: {', '.join(card['skipped'])}.", soft_wrap=True, markup=False)
    page.print(f"Written to {out}. Next: blemish train {out} -o RUN", soft_wrap=True, markup=False)


def demo(
    out: Annotated[Path, typer.Option("-o", "--out", help="Folder to write.")] = Path("demo"),
    quick: Annotated[bool, typer.Option(help="Fewer and smaller images, for a look in about a minute.")] = False,
    draw: Annotated[str, typer.Option(help="Only draw: flange, cloth, board, or panel (4000x3000).")] = "",
) -> None:
    """Draw a production line, learn each product, inspect it, and write a page that shows everything."""
    from blemish.cli.console import out as page
    from blemish.cli.console import products_table, progress

    if draw:
        from blemish.demo.line import PRODUCTS, write_line
        from blemish.demo.panel import write_panel

        small: dict[str, Any]
        if _one_of("--draw", draw, "", (*PRODUCTS, "panel")) == "panel":
            small = {"size": (1000, 750), "good": 4, "defective": 1} if quick else {}
            folder = write_panel(out / "data", progress=progress, **small)
        else:
            small = {"size": 256, "train": 30, "good": 8, "defective": 2} if quick else {"train": 80}
            folder = write_line(out / "data", products=[draw], progress=progress, **small)[0]
        page.print(f"Drawn in {folder}. Next: blemish train {folder} -o RUN", soft_wrap=True, markup=False)
        return
    from blemish.demo.run import run_demo

    runs = run_demo(out, quick=quick, progress=progress)
    page.print(products_table(runs, title="The demo line, on held-out images [95 % interval]"))
    page.print(f"Look at {out / 'index.html'}", soft_wrap=True)


def _one_of(option: str, text: str, default: str, choices: tuple[str, ...]) -> Any:
    if (text or default) not in choices:
        raise BlemishError(f"{option} takes {' or '.join(choices)}, not '{text}'.")
    return text or default


def share(text: str) -> float:
    try:
        return float(text[:-1]) / 100 if text.endswith("%") else float(text)
    except ValueError:
        raise BlemishError(f"'{text}' is not a rate; write it as 5% or 0.05.") from None


def _size(text: str) -> tuple[int, int] | None:
    from blemish.training.grid import size

    return size(text)

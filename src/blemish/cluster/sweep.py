"""`blemish cluster train`: the cells of a sweep as Ray tasks, on any node that sees the images and the sweep's folder.

Everything else is `training.sweep`, in the process that gave the command: the split, the table, the choice, and the
training of the chosen settings.
"""

from __future__ import annotations

import platform
import time
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import fields, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from blemish.cluster.start import connected, versions
from blemish.detectors.interface import DetectorConfig
from blemish.training.cell import Cell, Row, measure_cell
from blemish.training.sweep import Sweep, SweepConfig, sweep
from blemish.types import BlemishError, Progress, Sample, silent

T = TypeVar("T")
RETRIES = 3  # times that a cell is begun again after its process died
POLL = 0.1  # seconds between two looks at the tasks


def sweep_on_cluster(
    config: SweepConfig, progress: Progress = silent, *, address: str = "", cpus_per_cell: int = 1
) -> Sweep:
    """`training.sweep.sweep`, with its cells on the Ray cluster at `address` (on this machine alone, if empty), each
    with so many processors and as many threads. The rows are those of `sweep`, except their seconds.

    A cell whose process dies is begun again, at most RETRIES times, and is a failed row after that. Raises
    `BlemishError` also where a node does not see the images or has other versions, and where no node is large enough.
    """
    return sweep(config, progress, partial(measure_on_cluster, address=address, cpus=cpus_per_cell))


def measure_on_cluster(
    cells: Sequence[Cell],
    learning: Sequence[Sample],
    validation: Sequence[Sample],
    progress: Progress,
    *,
    address: str,
    cpus: int,
) -> Generator[tuple[Cell, Row], None, None]:
    """The `training.cell.Measure` of a cluster. Tasks that are not done when it is closed are ended."""
    if not cells:
        return
    with connected(address):
        import ray

        at_once = _at_once(ray.nodes(), cpus, any(_gpus(cell) for cell in cells))
        images = ray.put(([_absolute(s) for s in learning], [_absolute(s) for s in validation]))
        task = ray.remote(max_retries=0)(_task)
        here = _versions()

        def start(cell: Cell) -> Any:
            sent = replace(cell, settings=_located(cell.settings), unfinished=cell.unfinished.absolute())
            return task.options(num_cpus=cpus, num_gpus=_gpus(cell)).remote(sent, images, cpus, here)

        running = {start(cell): cell for cell in cells}
        try:
            yield from progress(_finished(running, start), f"cells, {at_once} at a time", len(cells))
        finally:
            for unfinished in running:
                ray.cancel(unfinished, force=True)


def _finished(running: dict[Any, Cell], start: Callable[[Cell], Any]) -> Iterator[tuple[Cell, Row]]:
    """The rows as they come, until nothing is `running`; a cell whose process died is put there again."""
    import ray

    deaths: Counter[str] = Counter()
    while running:
        done, _ = ray.wait(list(running), timeout=0)
        if not done:
            time.sleep(POLL)  # not in `ray.wait`, which makes another exit code of a signal
        for task in done:
            cell = running.pop(task)
            result = _result(task)
            if isinstance(result, str):
                deaths[cell.key] += 1
                if deaths[cell.key] <= RETRIES:
                    running[start(cell)] = cell
                    continue
                sentence = f"It was begun {deaths[cell.key]} times, and the last time {result}."
                result = Row(cell.options, {}, 0.0, sentence)
            yield cell, result


def _result(task: Any) -> Row | str:
    """The row of a task that is done, or how its process died. Raises what the task raised."""
    from ray import exceptions, get

    try:
        row: Row = get(task)
    except exceptions.OutOfMemoryError:
        return "its process was ended for want of memory; give each cell more processors, so that fewer run at once"
    except exceptions.NodeDiedError:
        return "the node that it ran on was lost"
    except (exceptions.WorkerCrashedError, exceptions.ObjectLostError):
        return "its process was killed, which the system does where memory is short, or crashed"
    except exceptions.RayTaskError as raised:
        cause = raised.cause
        if isinstance(cause, ImportError | exceptions.RaySystemError) or "failed to import" in str(cause):
            raise BlemishError(
                f"A node of the cluster cannot load what is here ({_first_line(cause)}); install the same version of "
                "blemish[learn,cluster] on all nodes."
            ) from None
        raise cause from None
    except exceptions.RayError as cause:
        raise BlemishError(f"Ray could not run a cell ({_first_line(cause)}); correct that and run it again.") from None
    return row


def _first_line(cause: BaseException) -> str:
    return str(cause).strip().partition("\n")[0]


def _task(cell: Cell, images: tuple[Sequence[Sample], Sequence[Sample]], cpus: int, expected: dict[str, str]) -> Row:
    """Runs on a node: the row of a cell."""
    import ray
    import torch

    node = f"The node {platform.node()} ({ray.util.get_node_ip_address()})"
    if different := [f"{name} {has}" for name, has in _versions().items() if has != expected.get(name)]:
        raise BlemishError(f"{node} has {', '.join(different)}; install the versions of the machine that starts it.")
    learning, validation = images
    if missing := first_missing([*_paths(cell.settings).values(), *_files(learning), *_files(validation)]):
        raise BlemishError(
            f"{node} does not see {missing}; put the images and the folder of -o where every node sees them under the "
            "same path, such as on a network drive."
        )
    torch.set_num_threads(cpus)
    try:
        return measure_cell(cell, learning, validation, silent)
    except OSError as cause:
        raise BlemishError(
            f"{node}: {cause.filename}: {cause.strerror or cause}; correct that and run it again."
        ) from None


def first_missing(files: Iterable[Path]) -> Path | None:
    """The first of the files that is not there, or the highest of the folders above it that is not; None if all are."""
    for file in files:
        if not file.exists():
            return next(place for place in [*reversed(file.parents), file] if not place.exists())
    return None


def _files(samples: Iterable[Sample]) -> Iterator[Path]:
    for sample in samples:
        if sample.pixels is None:
            yield sample.path
        if sample.mask:
            yield sample.mask


def _absolute(sample: Sample) -> Sample:
    """Tasks run in other folders, and on other machines."""
    return replace(sample, path=sample.path.absolute(), mask=sample.mask and sample.mask.absolute())


def _paths(settings: DetectorConfig) -> dict[str, Path]:
    values = {field.name: getattr(settings, field.name) for field in fields(settings)}  # type: ignore[arg-type]
    return {name: value for name, value in values.items() if isinstance(value, Path)}


def _located(settings: DetectorConfig) -> DetectorConfig:
    absolute = {name: path.absolute() for name, path in _paths(settings).items()}
    return replace(settings, **absolute)  # type: ignore[type-var]


def _gpus(cell: Cell) -> int:
    return int(getattr(cell.settings, "device", "cpu") == "cuda")


def _at_once(nodes: Sequence[dict[str, Any]], cpus: int, gpu: bool) -> int:
    """How many cells the nodes can run at the same time. Raises `BlemishError` where no node can run one."""
    offers = [node["Resources"] for node in nodes if node["Alive"]]
    if gpu:
        offers = [offer for offer in offers if offer.get("GPU", 0) >= 1]
        if not offers:
            raise BlemishError("The grid has device=cuda, and no node of the cluster has a GPU; add one, or omit that.")
    processors = [int(offer.get("CPU", 0)) for offer in offers]
    places = sum(
        min(here // cpus, int(offer["GPU"])) if gpu else here // cpus
        for here, offer in zip(processors, offers, strict=True)
    )
    if not places:
        raise BlemishError(
            f"A cell was to have {cpus} processors, and no node of the cluster {'with a GPU ' if gpu else ''}has more "
            f"than {max(processors, default=0)}; give fewer with --cpus-per-cell, or add such a node first."
        )
    return places


def _versions() -> dict[str, str]:
    import torch

    return {**versions(), "torch": torch.__version__}

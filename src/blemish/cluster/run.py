"""`blemish cluster inspect`: the driver plans, gives the parts to Ray Data's pool of actors, watches, and sums up."""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from blemish.cluster import plan as plans
from blemish.cluster.listing import Listed, listed
from blemish.cluster.places import LOCAL, Place, place, split_uri, uri_of, without_options
from blemish.cluster.plan import Plan
from blemish.cluster.progress import Count, Standing
from blemish.cluster.start import connected, located, silence, versions
from blemish.cluster.summary import Summary, earlier, summed, with_errors
from blemish.cluster.worker import Board, Inspect, Job
from blemish.files import kept
from blemish.images import MAX_PIXELS
from blemish.inference import bundle as bundles
from blemish.inference.bundle import Bundle
from blemish.inference.inspector import checked_session
from blemish.inference.time_limit import SECONDS
from blemish.types import BlemishError, Progress, silent

POLL = 0.5  # seconds
STALL = 600.0  # seconds without any image after which a run is ended
STARTS = 5  # times that a worker may die while it starts
QUEUED = 2  # parts that an actor has: one at work, and the next


@dataclass(frozen=True)
class Config:
    """The arguments of `blemish cluster inspect`; `address` is that of a Ray cluster, "" = start one here."""

    bundle: Path
    source: str
    out: str
    address: str = ""
    actors: int = 0  # at most; 0 = as many as the cluster has processors for
    cpus: int = 1  # of each actor
    gpus: float = 0.0  # of each actor
    per_file: int = 0  # images in a file of verdicts; 0 = by their number
    column: str = ""  # of a table's paths
    maps: bool = False
    overlays: bool = False
    max_pixels: int = MAX_PIXELS
    timeout: float = SECONDS
    stall: float = STALL
    overwrite: bool = False
    plan_only: bool = False
    retry_errors: bool = False  # make the parts again that hold errors


class StalledError(BlemishError):
    """Nothing has come from the workers for too long."""


def inspect(
    config: Config, progress: Progress = silent, watch: Callable[[Standing], None] = lambda _: None
) -> Summary | Plan:
    """Inspects all images of a source, or goes on with that. Returns the summary, or with `plan_only` the plan.

    Raises `BlemishError` where the bundle, the source or the output cannot be used, where a node cannot do its work,
    and where nothing has come from the workers for `stall` seconds. What is done by then is not done again.
    """
    loaded = replace(bundles.read(config.bundle), evidence=None)
    checked_session(loaded)  # refused here, not on a hundred nodes
    out, found = place(config.out), listed(config.source, config.column)
    if not config.timeout > 0:
        raise BlemishError(f"a time limit of {config.timeout:g} s is none; give a number of seconds above 0.")
    if config.address:
        located(config.address)  # before anything is replaced
    with ExitStack() as open_:
        if out.local:
            reads = [config.bundle, *_local_source(config.source)]
            here = Path(split_uri(out.uri)[1])
            open_.enter_context(
                kept(here, plans.KIND, plans.WRITTEN, overwrite=config.overwrite, resume=True, reads=reads)
            )
            _remove_partial(here)
        elif config.overwrite:
            raise BlemishError(f"--overwrite is about a folder; remove {out.uri} with your bucket's tools.")
        plan = _planned(config, loaded, out, found, progress)
        if config.plan_only:
            return plan
        begun, done = time.monotonic(), plans.done(out)
        if config.retry_errors:
            done -= with_errors(plan, out, done, progress)
        todo = sorted(set(range(plan.files)) - done)
        facts: dict[str, Any] = {"resumed": plan.files - len(todo), "first": None, "memory": 0}
        if not todo and (before := earlier(out)):  # all is done; how fast it was is not known better now
            facts |= {name: getattr(before, name) for name in ("seconds", "first", "rate", "memory")}
        if todo:
            try:
                with connected(config.address, objects=len(loaded.model)):
                    facts |= _run(config, loaded, plan, out, Count(plan, todo, begun), watch)
            except StalledError:
                raise  # the image at which a worker hangs is found by what is in there
            except BaseException:
                out.remove(plans.ATTEMPTS)  # a worker that is ended now did not die of its image
                raise
            out.remove(plans.ATTEMPTS)
        facts.setdefault("seconds", time.monotonic() - begun)
        return summed(plan, out, loaded.card, facts, progress)


def _local_source(source: str) -> list[Path]:
    """A folder that is read, so that nothing is written over it."""
    scheme, path = split_uri(source)
    return [Path(path)] if scheme == LOCAL and Path(path).exists() else []


def _remove_partial(out: Path) -> None:
    """What killed workers left: files that never got their name. Nobody else writes here now."""
    inside = (plans.VERDICTS, f"{plans.OVERLAYS}/*")
    for pattern in (*(f"{folder}/.*" for folder in inside), f".{plans.MANIFEST_FILE}.*", f".{plans.PLAN}.*"):
        for left in out.glob(pattern):
            left.unlink(missing_ok=True)


def _planned(config: Config, loaded: Bundle, out: Place, images: Listed, progress: Progress) -> Plan:
    """The plan that is there, if it is of what is asked; else a new one."""
    bare = without_options(config.source)[0]
    scheme, path = split_uri(bare)
    source = uri_of(str(Path(path).absolute())) if scheme == LOCAL else bare
    asked = Plan(
        bundle=loaded.card.sha256,
        source=source,
        column=config.column,
        maps=config.maps,
        overlays=config.overlays,
        max_pixels=config.max_pixels,
        timeout=config.timeout,
        device="cuda" if config.gpus else "cpu",
        versions=versions(),
    )
    if found := plans.begun(out):
        plans.same(found, asked, out, config.per_file)
        return found
    if plans.done(out):
        raise BlemishError(f"{out.uri} holds verdicts without a plan; choose another --out.")
    return plans.make(asked, images, out, config.per_file, progress)


def _run(
    config: Config, loaded: Bundle, plan: Plan, out: Place, count: Count, watch: Callable[[Standing], None]
) -> dict[str, Any]:
    """Has the parts written that `count` has to do. Returns what the workers said: see `Count.facts`."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    # A cluster of yours may still grow; then --stall says it.
    if not config.address and (why := _room(config)):
        raise BlemishError(f"{why}; give fewer with --cpus-per-actor and --gpus-per-actor.")
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    board = ray.remote(Board).options(num_cpus=0, scheduling_strategy=here).remote()
    root = next((str(folder.absolute()) for folder in _local_source(plan.source) if folder.is_dir()), "")
    job = Job(
        plan=plan,
        out=out,
        options=without_options(config.source)[1],
        root=root,
        cpus=config.cpus,
        max_pixels=config.max_pixels,
        timeout=config.timeout,
    )
    finished: queue.Queue[dict[str, Any] | BaseException | None] = queue.Queue()
    shipped = ray.put(loaded)  # kept here until all is done, for actors that are started later
    done = _pipeline(config, job, shipped, board, count.todo)

    def pull() -> None:
        try:
            for row in done.iter_rows():
                finished.put(row)
            finished.put(None)
        except BaseException as cause:  # to be raised where the driver waits
            finished.put(cause)

    threading.Thread(target=pull, daemon=True, name="ray data").start()
    try:
        return _watched(config, count, board, finished, watch)
    finally:
        for handler in logging.getLogger("ray.data").handlers:
            handler.setLevel(logging.CRITICAL + 1)  # its threads would tell of the end, also where nobody listens
        # Ray Data would go on where this process stays, such as a notebook; it has no public call for that.
        if executor := getattr(done, "_current_executor", None):
            executor.shutdown(force=True)


def _room(config: Config) -> str:
    """Why no worker can start, where no node that is there now is large enough for one; else empty."""
    import ray

    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    room = [(node.get("CPU", 0.0), node.get("GPU", 0.0)) for node in nodes]
    if any(cpus >= config.cpus and gpus >= config.gpus for cpus, gpus in room):
        return ""
    most = " or ".join(f"{cpus:g} processors and {gpus:g} GPUs" for cpus, gpus in sorted(set(room), reverse=True)[:3])
    return f"no node has the {config.cpus} processors and {config.gpus:g} GPUs of a worker, but {most}"


def _pipeline(config: Config, job: Job, loaded: Any, board: Any, todo: Sequence[int]) -> Any:
    """Ray Data's pipeline: part numbers -> a pool of actors -> a row for each part that is written. Images and verdicts
    do not pass through it: an actor reads its images and writes its file, so that no node holds what another needs."""
    import ray.data
    from ray.data import ActorPoolStrategy

    silence()
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = context.print_on_execution_start = False
    # Ray starts a dead actor again, and its part with it, without end: what one image can do is bounded by
    # `worker.DEATHS`. Those that die while they start are a bad node.
    context.max_consecutive_actor_init_deaths = STARTS
    context.max_errored_blocks = 0  # with -1, a pool whose actors are dead waits for ever (ray #62746)
    most = config.actors or max(1, int(ray.cluster_resources().get("CPU", 1) // config.cpus))
    pool = ActorPoolStrategy(
        # A pool that may not shrink is not refilled either where an actor is dead for good (ray #62746).
        min_size=max(1, most - 1),
        max_size=most,
        initial_size=most,
        max_tasks_in_flight_per_actor=QUEUED,
    )
    parts = ray.data.from_items([{"part": number} for number in todo], override_num_blocks=len(todo))
    return parts.map_batches(
        Inspect,
        # In a list: Ray would resolve it, and forget it before an actor is started again (ray #53727).
        fn_constructor_args=(job, [loaded], board),
        batch_size=None,
        compute=pool,
        num_cpus=config.cpus,
        num_gpus=config.gpus or None,
    )


def _watched(
    config: Config,
    count: Count,
    board: Any,
    finished: queue.Queue[dict[str, Any] | BaseException | None],
    watch: Callable[[Standing], None],
) -> dict[str, Any]:
    """Waits for the parts, tells how far they are, and ends the run where nothing comes any more."""
    import ray

    moved = time.monotonic()
    reported: Any = None
    while True:
        try:
            row = finished.get(timeout=POLL)
        except queue.Empty:
            row = {}
        if row is None:
            watch(count.standing())
            return count.facts()
        if isinstance(row, BaseException):
            raise _ended(row, count) from None
        if row.get("refusal"):
            raise BlemishError(row["refusal"])
        reported = reported or board.state.remote()
        if ray.wait([reported], timeout=0)[0]:
            with suppress(ray.exceptions.RayError):  # it is only the progress of parts that are at work
                count.running = ray.get(reported)
            reported = None
        if count.see(row):
            moved = time.monotonic()
        watch(count.standing("" if count.running else _room(config)))
        if time.monotonic() - moved > config.stall:
            why = count.at_work() if count.running else _room(config)
            why = f"; {why}" if why else ""
            raise StalledError(
                f"nothing has come from the workers for {config.stall:.0f} s ({count.parts} of {len(count.todo)} parts "
                f"are done{why}); look at the nodes (`ray status`), and run it again: it goes on where it stopped."
            )


def _ended(cause: BaseException, count: Count) -> BaseException:
    """What Ray Data ended with, as a sentence."""
    import ray

    if not isinstance(cause, ray.exceptions.RayError | RuntimeError | ValueError):
        return cause
    lines = [line.strip() for line in str(cause).strip().splitlines() if line.strip()]
    return BlemishError(
        f"Ray ended the work ({lines[-1] if lines else type(cause).__name__}) after {count.parts} of "
        f"{len(count.todo)} parts; run it again: it goes on where it stopped."
    )

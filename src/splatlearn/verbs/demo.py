"""`demo`: make a world, pre-train, prove it, show it; nothing is downloaded."""

import shutil
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from splatlearn.verbs import check_parent

if TYPE_CHECKING:
    from splatlearn.verbs.pretrain import Job

SETTINGS: dict[str, Any] = {
    "preset": "small",
    "data": "rooms.demo",
    "recipe_options": {
        "size": [128, 96],
        "epipolar": {"refinement_kernel": 1},
        "offset": {"own_color": True, "initial_pixels": 0.6},
    },
    "encoder_options": {"voxel": 0.03},
    "train_options": {"validation_samples": 12, "warmup": 0.2, "workers": 0},
}
"""What every run of the demo has in common: sizes that let four runs end in some minutes on two cores. Gaussians start
from their point's own colour, so that so short a run is sharp; refining pixel by pixel makes a step shorter. With
the preset's warm-up, five steps of so short a run, one seed of three had features of half the rank and 6 mIoU less."""
SEEDS = 3
RANDOM_FROZEN = "baseline/random_frozen"


def demo(*, out: Path = Path("demo"), seed: int = 0, steps: int = 110) -> str:
    """First result on this machine: furnished rooms, GS3 on them, a probe table, a report.

    Makes rooms; pre-trains a sparse U-Net by rendering, with three seeds; trains the same heads on a frozen random
    encoder for comparison; then probes what the encoders learnt on rooms that they never saw, beside the controls. A
    demo that was interrupted continues.

    Args:
        out: folder for the runs, `probes.json` and `report.html`.
        seed: the first of the three.
        steps: of each pre-training.

    Returns:
        The verdict and where the report is.

    Raises:
        UserError: a run failed, `out` holds other things, or the cache cannot be written.
    """
    from rich.console import Console

    from splatlearn.data.rooms.cache import WORKSHOP
    from splatlearn.engine.loop import train
    from splatlearn.engine.report import preview, write_report
    from splatlearn.verbs.evaluate import evaluate_table

    tell, out = Console(stderr=True).print, Path(out).expanduser()
    runs = {out / f"gs3-seed{seed + k}": _plan(steps, seed + k) for k in range(SEEDS)}
    frozen = out / "random-frozen"
    check_parent(out, "--out", {str(run): run for run in (*runs, frozen)})
    first = next(iter(runs.values()))
    WORKSHOP.root(first.source.reader().config.recipe)  # told before kernels are compiled
    tell("making furnished rooms and compiling kernels (once; both are cached)")
    with ThreadPoolExecutor(1) as beside:
        compiled = beside.submit(_compile)
        first.source.scenes()
        compiled.result()
    trained = _train({**runs, frozen: _plan(steps, seed, freeze_student=True)}, out / "status.json", tell)
    tell("probes on rooms that no encoder has seen")
    table = evaluate_table(
        [*runs],
        data=SETTINGS["data"],
        seeds=SEEDS,
        labels=(1.0,),
        finetune_labels=(0.1,),
        finetune_seeds=1,
        seed=seed,
        json=out / "probes.json",
        jobs=_slots(),
        tell=tell,
    )
    metrics = {f"{RANDOM_FROZEN}{kind}": trained[frozen][f"val_psnr{kind}"] for kind in ("", "_novel")}
    recipe, run = first.build(), next(iter(runs))
    train(recipe, first.train, run, settings=first.settings, show=False)  # its weights: the run is over
    report = write_report(run, preview(recipe), probes=table.to_dicts(), metrics=metrics)
    shutil.copyfile(report, out / "report.html")
    return f"{table}\n\nreport: {out / 'report.html'}"


def _compile() -> None:
    """Renders, forward and backward: every run would compile the same at its first step."""
    from splatlearn.splatting.render import render
    from splatlearn.splatting.trial import one_gaussian
    from splatlearn.tasks.encoders import pick_device

    gaussians, cameras = one_gaussian(pick_device("auto"))
    gaussians.means.requires_grad_()
    render(gaussians, cameras).color.sum().backward()


def _plan(steps: int, seed: int, **recipe_options: Any) -> "Job":
    from splatlearn.config import merge
    from splatlearn.verbs.pretrain import plan

    return plan("gs3", steps=steps, seed=seed, **merge(SETTINGS, {"recipe_options": recipe_options}))


def _train(runs: "Mapping[Path, Job]", record: Path, tell: Callable[[str], None]) -> dict[Path, Mapping[str, float]]:
    """Metrics of all runs. On a CPU several train at the same time: steps so small gain little by threads.

    Raises:
        UserError: some failed.
        SystemExit: stopped by a signal.
    """
    from splatlearn.engine.jobs import Job as Work
    from splatlearn.engine.jobs import require_done, run_jobs
    from splatlearn.engine.jobs_local import Processes, ThisProcess

    slots = _slots()
    tell(f"{', '.join(map(str, runs))}: {next(iter(runs.values())).train.steps} steps each, {slots} at the same time")
    work = [Work(str(run), partial(_run, job, run, run == next(iter(runs)))) for run, job in runs.items()]
    record.parent.mkdir(parents=True, exist_ok=True)
    statuses = run_jobs(
        work,
        ThisProcess() if slots == 1 else Processes(slots),
        retries=0,
        record=record,
        watch=lambda status: tell(f"{status.name}: {status.state}"),
    )
    require_done(statuses)
    return {run: status.metrics for run, status in zip(runs, statuses, strict=True)}


def _slots() -> int:
    """Runs or probes at the same time: on a CPU as many as there are runs, where there are cores for them."""
    from splatlearn.engine.jobs_local import cores
    from splatlearn.tasks.encoders import pick_device

    return min(cores(), SEEDS + 1) if pick_device("auto") == "cpu" else 1


def _run(job: "Job", run: Path, show: bool, attempt: int) -> Mapping[str, float]:
    """Trains, or continues, one run."""
    from splatlearn.engine.loop import train

    return train(job.build(), job.train, run, resume="auto", settings=job.settings, show=show).metrics

"""`demo`: make a world, pre-train, prove it, show it; nothing is downloaded."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from splatlearn.engine.summary import Summary
    from splatlearn.engine.trainable import Recipe
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
    """
    from rich.console import Console

    from splatlearn.config import merge
    from splatlearn.engine.report import preview, write_report
    from splatlearn.verbs.evaluate import evaluate_table
    from splatlearn.verbs.pretrain import plan

    tell = Console(stderr=True).print
    jobs = {out / f"gs3-seed{seed + k}": plan("gs3", steps=steps, seed=seed + k, **SETTINGS) for k in range(SEEDS)}
    heads_only = merge(SETTINGS, {"recipe_options": {"freeze_student": True}})
    frozen = plan("gs3", steps=steps, seed=seed, **heads_only)
    tell("making furnished rooms (once; they are cached)")
    frozen.source.scenes()
    recipes = [_train(job, run, tell)[0] for run, job in jobs.items()]
    baseline = _train(frozen, out / "random-frozen", tell)[1]
    tell("probes on rooms that no encoder has seen")
    table = evaluate_table(
        [*jobs],
        data=SETTINGS["data"],
        seeds=SEEDS,
        labels=(1.0,),
        finetune_labels=(0.1,),
        finetune_seeds=1,
        seed=seed,
        json=out / "probes.json",
        tell=tell,
    )
    metrics = {
        RANDOM_FROZEN: baseline.metrics["val_psnr"],
        f"{RANDOM_FROZEN}_novel": baseline.metrics["val_psnr_novel"],
    }
    report = write_report(next(iter(jobs)), preview(recipes[0]), probes=table.to_dicts(), metrics=metrics)
    shutil.copyfile(report, out / "report.html")
    return f"{table}\n\nreport: {out / 'report.html'}"


def _train(job: "Job", run: Path, tell: Callable[[str], None]) -> "tuple[Recipe[Any], Summary]":
    """The trained recipe and its summary; a run that is there is continued."""
    from splatlearn.engine.loop import train

    tell(f"{run}: {job.train.steps} steps")
    recipe = job.build()
    return recipe, train(recipe, job.train, run, resume="auto", settings=job.settings)

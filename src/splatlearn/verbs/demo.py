"""`demo`: make a world, pre-train, prove it, show it; nothing is downloaded."""

from collections.abc import Callable
from pathlib import Path

DATA = "rooms.demo"
STEPS = 300
FROZEN_STEPS = 100


def demo(*, out: Path = Path("demo"), seed: int = 0, steps: int = STEPS) -> Path:
    """First result on this machine: furnished rooms, GS3 on them, a probe table, a report.

    Makes rooms, pre-trains a sparse U-Net by rendering, trains the same heads on a frozen random encoder for
    comparison, then probes what the encoder learnt on rooms that it never saw. A demo that was interrupted continues.

    Args:
        out: folder for the runs and `report.html`.
        seed: of everything.
        steps: of pre-training.

    Returns:
        The report.
    """
    from rich.console import Console

    from splatlearn.engine.checkpoint import replace_file
    from splatlearn.engine.report import preview, write_report
    from splatlearn.engine.loop import train
    from splatlearn.verbs.evaluate import evaluate_table
    from splatlearn.verbs.pretrain import plan

    tell = Console(stderr=True).print
    tell(f"1/4 rooms, and GS3 on them: {steps} steps")
    job = plan("gs3", preset="small", data=DATA, steps=steps, seed=seed)
    recipe = job.build()
    train(recipe, job.train, out / "gs3", resume="auto", settings=job.settings)
    tell(f"2/4 the same heads on a frozen random encoder: {FROZEN_STEPS} steps")

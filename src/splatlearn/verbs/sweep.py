"""`sweep`: pre-training with every combination of encoders, teachers, data and settings, side by side in one table."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from splatlearn.engine.jobs import Status
    from splatlearn.verbs.compare import Compared

Options = Mapping[str, Any]


def sweep(
    recipe: str,
    *,
    out: Path,
    preset: str = "small",
    encoders: tuple[str, ...] = (),
    teachers: tuple[str, ...] = (),
    data: tuple[str, ...] = (),
    vary: Mapping[str, Sequence[Any]] | None = None,
    seeds: int = 1,
    steps: int | None = None,
    labelled: str = "",
    task: str = "segmentation",
    task_preset: str = "",
    projector: str = "",
    jobs: int = 1,
    retries: int = 1,
    data_options: Options | None = None,
    teacher_options: Options | None = None,
    recipe_options: Options | None = None,
    train_options: Options | None = None,
) -> "Compared":
    """Pre-train with every combination of encoders, teachers, data and settings, and compare.

    ScaLR's three pillars in one command: how large the student is, who teaches, and which data sets are mixed; and
    DUNE's tables of projectors and of who shares images, by --vary "{projector: [transformer, simple, ladder]}" and
    --vary "{dropping.mode: [own_data, own+generic, lowest_loss]}". Each combination gets a run folder in `--out`; a
    sweep that was interrupted is continued by the same command, and `status.json` says what became of each run. With
    `--labelled`, a linear probe measures every run.

    Args:
        recipe: how to learn: scalr, dune, gs3.
        out: folder of the runs, of `status.json`, and of the page `compare.html`.
        preset: of the recipe.
        encoders: FAMILY.PRESET, with commas between; by default the preset's.
        teachers: likewise, of recipes that distil.
        data: data sets, with commas between; a mix of several is NAME+NAME.
        vary: options of the recipe -> values, each of which is tried.
        seeds: runs of every combination, with the seeds 0, 1, ...
        steps: optimiser steps; by default the preset's.
        labelled: data with labels for a linear probe of every run; by default none.
        task: that the probe is for.
        task_preset: of it; by default lidar for segmentation, and small for others.
        projector: a teacher: its probe is of the features after each run's projector for it.
        jobs: runs at the same time, in processes that share the cores.
        retries: attempts after the first.
        data_options: options of the reader of every data set.
        teacher_options: options of every teacher.
        recipe_options: options of the recipe.
        train_options: options of the training loop.

    Raises:
        ConfigError: a combination that does not fit, before any is begun; teachers are looked at as they are loaded.
        UserError: some runs failed.
    """
    from splatlearn import registry
    from splatlearn.data.scene import Source
    from splatlearn.engine.jobs import Job, require_done, run_jobs
    from splatlearn.engine.jobs_local import Processes, ThisProcess
    from splatlearn.errors import ConfigError, Problems
    from splatlearn.verbs.compare import compare
    from splatlearn.verbs.pretrain import plan

    for name, value, least in (("seeds", seeds, 1), ("jobs", jobs, 1), ("retries", retries, 0)):
        if value < least:
            raise ConfigError(f"--{name}: {least} or more is needed, got {value}")
    shared = {
        "preset": preset,
        "steps": steps,
        "data_options": data_options,
        "teacher_options": teacher_options,
        "recipe_options": recipe_options,
        "train_options": train_options,
    }
    out, problems = Path(out).expanduser(), Problems()
    for name, values in (vary or {}).items():
        if isinstance(values, str) or not isinstance(values, Sequence) or not values:
            raise ConfigError(f"--vary {name}: a list of values is needed, [a, b], got {values!r}")
    every = list(combinations(encoders, teachers, data, vary or {}, seeds))
    if len(names := {one.name for one in every}) < len(every):
        raise ConfigError(
            f"{len(every)} runs would share {len(names)} folders: every data set needs a name of its own, and every "
            "value of --vary is to differ"
        )
    runs = {out / one.name: shared | one.settings(recipe_options, data_options) for one in every}
    for given in runs.values():
        problems.catch(partial(plan, recipe, **given))
    if labelled:
        problems.catch(Source(name=labelled).reader)
        task_preset = task_preset or ("lidar" if task == "segmentation" else "small")
        problems.catch(lambda: registry.tasks.config(f"{task}.{task_preset}"))
    problems.tell()
    probe = Probe(labelled, task, task_preset, projector) if labelled else None
    work = [Job(run.name, partial(_run, recipe, run, given, probe)) for run, given in runs.items()]
    out.mkdir(parents=True, exist_ok=True)
    backend = ThisProcess() if jobs == 1 else Processes(jobs)
    require_done(run_jobs(work, backend, retries=retries, record=out / "status.json", watch=_tell))
    return compare(*map(str, runs), out=out / "compare.html")


class Probe(NamedTuple):
    """What every run is measured by.

    Args:
        data: with labels.
        task, preset: of the probe.
        projector: teacher after whose projector the features are, or empty.
    """

    data: str
    task: str
    preset: str
    projector: str


@dataclass(frozen=True)
class Combination:
    """One run of a sweep; what is None is the preset's.

    Args:
        encoder, teacher: of it.
        data: data sets that are mixed.
        varied: options of the recipe and their values.
        seed: of it.
    """

    encoder: str | None
    teacher: str | None
    data: tuple[str, ...]
    varied: tuple[tuple[str, Any], ...]
    seed: int

    @property
    def name(self) -> str:
        """A folder's name that tells it from the others."""
        mixed = "+".join(Path(name).name for name in self.data)
        varied = (f"{name.rpartition('.')[2]}_{value}" for name, value in self.varied)
        parts = (self.encoder, self.teacher, mixed, *varied, f"seed{self.seed}")
        return "-".join(re.sub(r"[^\w.+]+", "_", part) for part in parts if part)

    def settings(self, recipe_options: Options | None, data_options: Options | None) -> dict[str, Any]:
        """Arguments of `plan`: the first data set is the data, the others go to the recipe's `also`."""
        first, *others = self.data or (None,)
        own: dict[str, Any] = {"encoder": self.encoder, "teacher": self.teacher, "data": first, "seed": self.seed}
        given = {**(recipe_options or {}), **dict(self.varied)}
        if others:
            given["also"] = {**given.get("also", {}), **{name: dict(data_options or {}) for name in others}}
        return {**own, "recipe_options": given}


def combinations(
    encoders: tuple[str, ...],
    teachers: tuple[str, ...],
    data: tuple[str, ...],
    vary: Mapping[str, Sequence[Any]],
    seeds: int,
) -> Iterator[Combination]:
    """All of them; what is left out is the preset's."""
    mixes = [tuple(mix.split("+")) for mix in data]
    options = [[(name, value) for value in values] for name, values in vary.items()]
    axes = (encoders or (None,), teachers or (None,), mixes or [()], list(product(*options)), range(seeds))
    for encoder, teacher, mix, varied, seed in product(*axes):
        yield Combination(encoder, teacher, mix, varied, seed)


def _run(recipe: str, run: Path, given: Options, probe: "Probe | None", attempt: int) -> Mapping[str, float]:
    """The job: a run, continued where it was, and its probe."""
    from splatlearn.verbs.evaluate import evaluate
    from splatlearn.verbs.pretrain import pretrain

    metrics = dict(pretrain(recipe, run=run, **given).metrics)
    if probe:
        file = run / "evaluations" / "linear.json"
        which: dict[str, Any] = {"data": probe.data, "preset": probe.preset, "seed": given["seed"]}
        which["encoder_options"] = {"projector": probe.projector} if probe.projector else None
        found = evaluate(probe.task, encoder=str(run), json=file, **which)
        metrics |= {f"linear/{name}": value for name, value in found.metrics.items()}
    return metrics


def _tell(status: "Status") -> None:
    """A line for whoever watches."""
    from rich.console import Console

    from splatlearn.engine.runtime import is_main

    if is_main():
        Console(stderr=True).print(f"{status.name}: {status.state} {status.error.partition(chr(10))[0]}", markup=False)

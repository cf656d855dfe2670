"""One fit after another, or several at the same time in processes of their own: what is done, and what failed."""

import os
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

from splatlearn.config import to_options
from splatlearn.data.scene import Scene, Source
from splatlearn.engine.checkpoint import RunFolder
from splatlearn.engine.config import TrainConfig
from splatlearn.engine.jobs import Backend, Job, Status, first_line, run_jobs, table
from splatlearn.engine.jobs_local import Processes, ThisProcess
from splatlearn.engine.loop import train
from splatlearn.engine.report import preview, write_report
from splatlearn.engine.runtime import is_main
from splatlearn.engine.summary import Summary
from splatlearn.errors import BadData, ConfigError, UserError, nearest
from splatlearn.splatting.files import write_gaussians
from splatlearn.tasks.fit_splits import joined
from splatlearn.tasks.fitting import FitConfig, SceneFit
from splatlearn.verbs import check_parent

Where = Literal["local", "ray"]
RESULTS = ("scene.ply", "report.html", "summary.json")
"""Files of a scene that is done."""
COLUMNS = {
    "gaussians": "Gaussians",
    "val_psnr": "PSNR",
    "val_ssim": "SSIM",
    "val_depth_error": "depth, m",
    "baseline/copy_nearest": "nearest",
}
"""Metrics of the table."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Checked settings of a fit.

    Args:
        source: where the scenes are.
        config: of each fit.
        train: of the loop.
        resume: whether run folders that are there are continued.
    """

    source: Source
    config: FitConfig
    train: TrainConfig
    resume: Literal["auto", "never"] = "auto"

    def settings(self, scene: str) -> dict[str, Any]:
        """What `config.yaml` holds besides those of the loop."""
        data = {"name": self.source.name, "options": self.source.resolved()}
        return {"fit": to_options(self.config), "data": data, "scene": scene}

    def folder(self, scene: str, run: Path) -> RunFolder:
        """The run folder of a scene."""
        return RunFolder(run, {**self.settings(scene), "train": to_options(self.train)})


@dataclass(frozen=True)
class Fits:
    """What became of all scenes.

    Args:
        statuses: one a scene; the metrics are those of its summary, and `gaussians`, how many it has.
        folders: scene -> its run folder.
    """

    statuses: tuple[Status, ...]
    folders: Mapping[str, Path]

    def __str__(self) -> str:
        alone = len(self.statuses) == 1 and self.statuses[0].state == "done"
        return _single(self) if alone else table(self.statuses, COLUMNS)


def parse_shard(text: str) -> tuple[int, int]:
    """`i/n` as (i, n).

    Raises:
        ConfigError: it is not that, or i is not within 1 to n.
    """
    found = re.fullmatch(r"(\d+)/(\d+)", text)
    if not found or not 1 <= int(found[1]) <= int(found[2]):
        raise ConfigError(f"--shard: i/n with i from 1 to n is needed (1/4 is the first of four), got {text!r}")
    return int(found[1]), int(found[2])


def fit_scenes(
    plan: Plan,
    run: Path,
    *,
    scene: str | None = None,
    on: Where = "local",
    jobs: int | None = None,
    retries: int = 1,
    share: int = 1,
    shares: int = 1,
) -> Fits:
    """Fits the scenes of a source, or a share of them.

    Args:
        plan: the settings.
        run: the run folder of the only scene; of several scenes each gets a folder in it.
        scene: only this one.
        on: what runs them.
        jobs: at the same time; by default one here, and as many as there is room for on Ray.
        retries: attempts after the first, where there are several scenes.
        share: which share of the scenes, from 1.
        shares: how many shares there are.

    Raises:
        ConfigError: no such scene, or jobs that make no sense.
        UserError: a scene failed, or, of a single one, whatever was wrong with it.
    """
    ranks = int(os.environ.get("WORLD_SIZE", 1))
    if (jobs is not None and jobs < 1) or (ranks > 1 and (on == "ray" or (jobs or 1) > 1)):
        raise ConfigError(f"--jobs: 1 or more is needed, and 1 and --on local under torchrun, got {jobs} on {on}")
    if retries < 0:
        raise ConfigError(f"--retries: 0 or more is needed, got {retries}")
    scenes = joined(plan.source.scenes())
    if scene is not None:
        names = [one.name for one in scenes]
        if scene not in names:
            raise ConfigError(f"--scene {scene}: there is none of that name{nearest(scene, names)} ({_listed(names)})")
        scenes = [one for one in scenes if one.name == scene]
    if len(scenes) == 1 and on == "local":
        return _only(plan, scenes[0], run) if share == 1 else Fits((), {})
    name = "status.json" if shares == 1 else f"status-{share}-of-{shares}.json"
    places = {scenes[0].name: run} if len(scenes) == 1 else _places([one.name for one in scenes], run, name)
    if len(scenes) > 1:
        check_parent(run, "--run", places)
    mine = scenes[share - 1 :: shares]
    _check_folders(plan, {one.name: places[one.name] for one in mine})
    backend = _backend(on, jobs)
    show = isinstance(backend, ThisProcess)
    todo = [Job(one.name, partial(_fit, plan, one, places[one.name], show)) for one in mine]
    record = run / name if len(scenes) > 1 and os.environ.get("RANK", "0") == "0" else None
    if record:
        run.mkdir(parents=True, exist_ok=True)
    statuses = run_jobs(todo, backend, retries=retries, record=record, watch=_tell)
    fits = Fits(tuple(statuses), {job.name: places[job.name] for job in todo})
    if any(status.state == "stopped" for status in statuses):
        raise SystemExit(143)
    failed = [status for status in statuses if status.state == "failed"]
    if failed:
        where = f", see {record}" if record else ""
        raise UserError(f"{len(failed)} of {len(statuses)} scenes failed{where}\n{fits}")
    return fits


def fit_scene(
    plan: Plan, scene: Scene, run: Path, *, show: bool, resume: Literal["auto", "never"] | None = None
) -> Summary:
    """One scene: trains, or continues, and writes `scene.ply` and the report.

    Args:
        plan: the settings.
        scene: with posed frames.
        run: its folder.
        show: progress on standard error.
        resume: instead of the plan's.

    Raises:
        UserError: the scene or the folder cannot be used.
    """
    resume = resume or plan.resume
    plan.folder(scene.name, run).check(resume)
    if all((run / name).is_file() for name in RESULTS):
        return Summary.read(run / "summary.json")
    fitted = SceneFit(plan.config, scene, plan.train.seed)
    summary = train(fitted, plan.train, run, settings=plan.settings(scene.name), resume=resume, show=show)
    if is_main():
        write_gaussians(fitted.gaussians(), run / "scene.ply", overwrite=True)
        write_report(run, preview(fitted))
    return summary


def _check_folders(plan: Plan, places: Mapping[str, Path]) -> None:
    """Asked before any scene is begun: later attempts continue whatever is there.

    Raises:
        UserError: the run folder of a scene is refused.
    """
    refused = []
    for name, place in places.items():
        try:
            plan.folder(name, place).check(plan.resume)
        except UserError as error:
            refused.append(str(error))
    if refused:
        raise UserError(f"{refused[0]}\n({len(refused)} of {len(places)} folders are refused; nothing was begun)")


def _fit(plan: Plan, scene: Scene, place: Path, show: bool, attempt: int) -> dict[str, float]:
    """The job: a later attempt continues what an earlier one saved."""
    return _metrics(fit_scene(plan, scene, place, show=show, resume="auto" if attempt > 1 else None))


def _only(plan: Plan, scene: Scene, run: Path) -> Fits:
    """A single scene: its errors are those of the program."""
    begun = time.perf_counter()
    metrics = _metrics(fit_scene(plan, scene, run, show=True))
    seconds = time.perf_counter() - begun
    status = Status(name=scene.name, state="done", attempts=1, seconds=seconds, metrics=metrics)
    return Fits((status,), {scene.name: run})


def _metrics(summary: Summary) -> dict[str, float]:
    return {**summary.metrics, "gaussians": int(summary.facts.get("gaussians_per_sample", 0))}


def _backend(on: Where, jobs: int | None) -> Backend:
    if on == "ray":
        from splatlearn.engine.jobs_ray import RayCluster

        return RayCluster(jobs)
    return ThisProcess() if jobs in (None, 1) else Processes(jobs)


def _tell(status: Status) -> None:
    """A line for whoever watches."""
    if not is_main():
        return
    from rich.console import Console

    what = f"{status.metrics['val_psnr']:.2f} dB" if "val_psnr" in status.metrics else first_line(status.error)
    Console(stderr=True).print(f"{status.name}: {status.state} {what}", markup=False)


def _places(names: Sequence[str], run: Path, record: str) -> dict[str, Path]:
    """Name -> folder; a name that is a path becomes one folder.

    Raises:
        BadData: two scenes would share a folder.
    """
    places = {name: run / re.sub(r"[^\w.-]+", "-", name).strip(".") for name in names}
    if len({*places.values(), run / record}) <= len(places) or len(places) < len(names):
        raise BadData(f"scenes have names too much alike for folders of their own: {_listed(names)}")
    return places


def _single(fits: Fits) -> str:
    metrics = dict(fits.statuses[0].metrics)
    head = f"{metrics.pop('gaussians'):,} Gaussians: {fits.folders[fits.statuses[0].name] / 'scene.ply'}"
    width = max(map(len, metrics), default=0)
    return "\n".join([head, *(f"  {name:{width}}  {value:.4g}" for name, value in metrics.items())])


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")

"""One fit after another, or several at the same time in processes of their own: what is done, and what failed."""

import json
import multiprocessing
import os
import re
import signal
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any, Literal

from splatlearn.config import to_options
from splatlearn.data.scene import Scene, Source
from splatlearn.engine.checkpoint import RunFolder, replace_file
from splatlearn.engine.config import TrainConfig
from splatlearn.engine.loop import Terminated, train
from splatlearn.engine.report import preview, write_report
from splatlearn.engine.runtime import is_main
from splatlearn.engine.summary import Summary
from splatlearn.errors import BadData, ConfigError, UserError, nearest
from splatlearn.splatting.files import write_gaussians
from splatlearn.tasks.fitting import FitConfig, SceneFit

ATTEMPTS = 2
"""A scene that fails is tried once more: a full disk or a killed process may be gone by then."""
RESULTS = ("scene.ply", "report.html", "summary.json")
"""Files of a scene that is done."""
COLUMNS = {"val_psnr": "PSNR", "val_ssim": "SSIM", "val_depth_error": "depth, m", "baseline/copy_nearest": "nearest"}
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


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What became of one scene.

    Args:
        scene: its name.
        run: its folder.
        state: `done`, `failed`, or `stopped` by a signal.
        attempts: how often it was tried.
        seconds: of all attempts.
        metrics: of its summary.
        gaussians: of its scene.
        error: what was wrong, and where in the program if that was not the user's to mend.
    """

    scene: str
    run: str
    state: Literal["done", "failed", "stopped"]
    attempts: int = 1
    seconds: float = 0.0
    metrics: dict[str, float] = field(default_factory=dict)
    gaussians: int = 0
    error: str = ""


@dataclass(frozen=True)
class Fits:
    """What became of all scenes."""

    outcomes: tuple[Outcome, ...]

    def __str__(self) -> str:
        if len(self.outcomes) == 1:
            return _single(self.outcomes[0])
        names = [name for name in COLUMNS if any(name in outcome.metrics for outcome in self.outcomes)]
        rows = [["scene", "state", "minutes", "Gaussians", *(COLUMNS[name] for name in names)]]
        for outcome in self.outcomes:
            numbers = [f"{outcome.metrics[name]:.3f}" if name in outcome.metrics else "-" for name in names]
            counts = [f"{outcome.seconds / 60:.1f}", f"{outcome.gaussians:,}"]
            rows.append([outcome.scene, outcome.state, *counts, *numbers])
        widths = [max(map(len, column)) for column in zip(*rows)]
        lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows]
        return "\n".join([*lines, *(f"{o.scene}: {_first_line(o.error)}" for o in self.outcomes if o.error)])


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
    plan: Plan, run: Path, *, scene: str | None = None, jobs: int = 1, share: int = 1, shares: int = 1
) -> Fits:
    """Fits the scenes of a source, or a share of them.

    Args:
        plan: the settings.
        run: the run folder of the only scene; of several scenes each gets a folder in it.
        scene: only this one.
        jobs: at the same time.
        share: which share of the scenes, from 1.
        shares: how many shares there are.

    Raises:
        ConfigError: no such scene, or jobs that make no sense.
        UserError: a scene failed, or, of a single one, whatever was wrong with it.
    """
    if jobs < 1 or (jobs > 1 and int(os.environ.get("WORLD_SIZE", 1)) > 1):
        raise ConfigError(f"--jobs: 1 or more is needed, and 1 under torchrun, got {jobs}")
    scenes = plan.source.scenes()
    if scene is not None:
        names = [one.name for one in scenes]
        if scene not in names:
            raise ConfigError(f"--scene {scene}: there is none of that name{nearest(scene, names)} ({_listed(names)})")
        scenes = [one for one in scenes if one.name == scene]
    if len(scenes) == 1:
        return Fits((_outcome(scenes[0], run, fit_scene(plan, scenes[0], run, show=True)),)) if share == 1 else Fits(())
    mine = scenes[share - 1 :: shares]
    places = _places([one.name for one in scenes], run)
    work = [(one, places[one.name]) for one in mine]
    outcomes = tuple(_one_by_one(plan, work, run) if jobs == 1 else _side_by_side(plan, work, run, jobs))
    fits = Fits(outcomes)
    if any(outcome.state == "stopped" for outcome in outcomes):
        raise SystemExit(143)
    failed = [outcome for outcome in outcomes if outcome.state == "failed"]
    if failed:
        raise UserError(f"{len(failed)} of {len(outcomes)} scenes failed, see {run / 'status'}\n{fits}")
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
    resume, settings = resume or plan.resume, plan.settings(scene.name)
    RunFolder(run, {**settings, "train": to_options(plan.train)}).check(resume)
    if all((run / name).is_file() for name in RESULTS):
        return Summary.read(run / "summary.json")
    fitted = SceneFit(plan.config, scene, plan.train.seed)
    summary = train(fitted, plan.train, run, settings=settings, resume=resume, show=show)
    if is_main():
        write_gaussians(fitted.gaussians(), run / "scene.ply", overwrite=True)
        write_report(run, preview(fitted))
    return summary


def _one_by_one(plan: Plan, work: Sequence[tuple[Scene, Path]], run: Path) -> Iterator[Outcome]:
    for scene, place in work:
        outcome = _try(lambda number, s=scene, p=place: _attempt(plan, s, p, number, True))
        _record(run, outcome)
        yield outcome
        if outcome.state == "stopped":
            return


def _side_by_side(plan: Plan, work: Sequence[tuple[Scene, Path]], run: Path, jobs: int) -> Iterator[Outcome]:
    threads = max(1, _cores() // jobs)
    with _forwarding() as stopped, ThreadPoolExecutor(jobs) as pool:

        def one(scene: Scene, place: Path) -> Outcome:
            if stopped.is_set():
                return Outcome(scene=scene.name, run=str(place), state="stopped", attempts=0)
            outcome = _try(lambda number: _apart(plan, scene, place, number, threads, stopped))
            _record(run, outcome)
            return outcome

        futures: list[Future[Outcome]] = [pool.submit(one, *pair) for pair in work]
        try:
            yield from (future.result() for future in futures)
        except KeyboardInterrupt:  # leaving the pool waits for all that it was given
            _end(stopped)
            raise


def _try(attempt: Callable[[int], Outcome]) -> Outcome:
    """The outcome of the first attempt that does not fail, or of the last."""
    begun, outcome = time.perf_counter(), attempt(1)
    for number in range(2, ATTEMPTS + 1):
        if outcome.state != "failed":
            break
        outcome = attempt(number)
    return Outcome(**{**asdict(outcome), "seconds": time.perf_counter() - begun})


def _attempt(plan: Plan, scene: Scene, place: Path, number: int, show: bool, threads: int = 0) -> Outcome:
    """One attempt in this process; what goes wrong is told, not raised, but for Ctrl-C."""
    failed: dict[str, Any] = {"scene": scene.name, "run": str(place), "state": "failed", "attempts": number}
    try:
        if threads:
            import torch

            torch.set_num_threads(threads)
        summary = fit_scene(plan, scene, place, show=show, resume="auto" if number > 1 else None)
        return _outcome(scene, place, summary, number)
    except Terminated as error:
        return Outcome(**{**failed, "state": "stopped", "error": str(error)})
    except UserError as error:
        return Outcome(**failed, error=str(error))
    except Exception as error:  # the other scenes go on, whatever this is
        return Outcome(**failed, error=f"{type(error).__name__}: {error}\n{traceback.format_exc()}")


def _apart(plan: Plan, scene: Scene, place: Path, number: int, threads: int, stopped: threading.Event) -> Outcome:
    """One attempt in a process of its own, whose death is a failure of this scene alone."""
    try:
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
            future = pool.submit(_attempt, plan, scene, place, number, False, threads)
            if stopped.is_set():  # while the process was begun
                _end(stopped)
            return future.result()
    except BrokenProcessPool:
        state = "stopped" if stopped.is_set() else "failed"
        error = "its process died (out of memory?)" if state == "failed" else "stopped by SIGTERM"
        return Outcome(scene=scene.name, run=str(place), state=state, attempts=number, error=error)


@contextmanager
def _forwarding() -> Iterator[threading.Event]:
    """Hands a SIGTERM on to the processes; the event says that it came."""
    stopped = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stopped
        return

    def hand_on(_: int, __: FrameType | None) -> None:
        _end(stopped)

    before = signal.signal(signal.SIGTERM, hand_on)
    try:
        yield stopped
    finally:
        signal.signal(signal.SIGTERM, before)


def _end(stopped: threading.Event) -> None:
    """Nothing more is begun, and the processes save and end."""
    stopped.set()
    for child in multiprocessing.active_children():
        child.terminate()


def _record(run: Path, outcome: Outcome) -> None:
    """Writes `RUN/status/SCENE.json`, and a line for whoever watches."""
    if not is_main():
        return
    from rich.console import Console

    folder = run / "status"
    folder.mkdir(parents=True, exist_ok=True)
    replace_file(folder / f"{Path(outcome.run).name}.json", json.dumps(asdict(outcome), indent=2) + "\n")
    what = f"{outcome.metrics['val_psnr']:.2f} dB" if "val_psnr" in outcome.metrics else _first_line(outcome.error)
    Console(stderr=True).print(f"{outcome.scene}: {outcome.state} {what}", markup=False)


def _outcome(scene: Scene, place: Path, summary: Summary, attempts: int = 1) -> Outcome:
    count = int(summary.facts.get("gaussians_per_sample", 0))
    seconds = summary.steps / summary.steps_per_second if summary.steps_per_second else 0.0
    return Outcome(
        scene=scene.name,
        run=str(place),
        state="done",
        attempts=attempts,
        seconds=seconds,
        metrics=summary.metrics,
        gaussians=count,
    )


def _places(names: Sequence[str], run: Path) -> dict[str, Path]:
    """Name -> folder; a name that is a path becomes one folder.

    Raises:
        BadData: two scenes would share a folder.
    """
    places = {name: run / re.sub(r"[^\w.-]+", "-", name).strip(".") for name in names}
    if len({*places.values(), run / "status"}) <= len(places) or len(places) < len(names):
        raise BadData(f"scenes have names too much alike for folders of their own: {_listed(names)}")
    return places


def _single(outcome: Outcome) -> str:
    width = max(map(len, outcome.metrics), default=0)
    numbers = [f"  {name:{width}}  {value:.4g}" for name, value in outcome.metrics.items()]
    return "\n".join([f"{outcome.gaussians:,} Gaussians: {Path(outcome.run) / 'scene.ply'}", *numbers])


def _first_line(text: str) -> str:
    return text.splitlines()[0] if text else ""


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1

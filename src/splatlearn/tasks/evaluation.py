"""One probe of one encoder: what is run, and what comes out."""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from splatlearn import registry
from splatlearn.config import configure, merge, to_options
from splatlearn.data.scene import Source
from splatlearn.encoders.base import calibrate
from splatlearn.engine.checkpoint import encoder_digest, replace_file, versions
from splatlearn.engine.config import TrainConfig
from splatlearn.engine.loop import Terminated, train
from splatlearn.errors import ConfigError
from splatlearn.tasks.base import ProbeName
from splatlearn.tasks.encoders import Resolved, device_of, pick_device, resolve_encoder, seeded

UNITS: Mapping[str, str] = {"rmse": " m", "rel": ""}
"""Metrics that are no percentages, and their units."""


def with_unit(name: str, value: float) -> str:
    """A metric for a reader: percentages with one decimal, others with three."""
    return f"{value:.3f}{UNITS[name]}" if name in UNITS else f"{value:.1f} %"


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """One probe's result.

    Args:
        task: name of the task.
        probe: `linear`, `decoder`, `finetune`.
        metrics: `miou`, `macc`, `accuracy`... in percent, but for those in `UNITS`.
        per_class: IoU of each class that occurs, in percent.
        encoder: as it was named.
        origin: `run` (pre-trained), `random`, `raw` or `teacher`.
        data: name or path of the data.
        labels: share of the training labels.
        steps: optimiser steps.
        seed: of new weights, order and the choice of labels.
        options: settings that were changed, by part.
        versions: of what the result depends on.
        further: what else was measured with the trained task, by name.
        preset: of the task.
        projector: the teacher after whose projector the features are; empty: they are the encoder's own.
    """

    task: str
    probe: str
    metrics: Mapping[str, float]
    per_class: Mapping[str, float]
    encoder: str
    origin: str
    data: str
    labels: float
    steps: int
    seed: int
    options: Mapping[str, Any] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    further: Mapping[str, Any] = field(default_factory=dict)
    preset: str = ""
    projector: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Plain data, as `--json` writes it."""
        further = {name: part.to_dict() if hasattr(part, "to_dict") else part for name, part in self.further.items()}
        return json.loads(json.dumps({**self.__dict__, "further": further}, default=str))

    def write(self, path: Path) -> None:
        """Writes the JSON file, whole or not at all."""
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_file(path, json.dumps(self.to_dict(), indent=2) + "\n")

    def __str__(self) -> str:
        rows = [[name, with_unit(name, value)] for name, value in {**self.metrics, **self.per_class}.items()]
        after = f" after its projector for {self.projector}" if self.projector else ""
        what = f"{self.task}, {self.probe} probe of {self.encoder}{after} on {self.data}"
        title = f"{what}, {100 * self.labels:g} % of the labels"
        table = draw(title, ["", ""], rows, lines_after={len(self.metrics)})
        return "\n\n".join([table, *map(str, self.further.values())])


@dataclass(frozen=True, kw_only=True)
class Trial:
    """What a probe is run with.

    Args:
        task: `family` or `family.preset`.
        source: labelled data.
        probe: what is trained.
        labels: share of the training labels.
        steps: optimiser steps; 0 takes the task's.
        seed: of new weights, order and the choice of labels.
        task_options: options of the task's config.
        train_options: options of the loop, over the task's own.
    """

    task: str
    source: Source
    probe: ProbeName = "linear"
    labels: float = 1.0
    steps: int = 0
    seed: int = 0
    task_options: Mapping[str, Any] = field(default_factory=dict)
    train_options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def config(self) -> Any:
        """The task's config."""
        return registry.tasks.config(self.task, self.task_options, where="--task")

    def training(self) -> TrainConfig:
        """The loop's config.

        Raises:
            ConfigError: the task has no such probe.
        """
        family = registry.tasks.family(self.task)
        if self.probe not in family.cls.probes:
            raise ConfigError(f"--probe {self.probe}: {family.name} has none (it has: {', '.join(family.cls.probes)})")
        given = {"steps": self.steps} if self.steps else {}
        own = family.cls.training(self.config, self.probe)
        options = merge(merge(own, self.train_options), {**given, "seed": self.seed})
        return configure(TrainConfig, options, "--train")


def find_encoder(trial: Trial, name: str, options: Mapping[str, Any] | None = None) -> Resolved:
    """The encoder of that name on the training device, with batch-norm statistics set where the task says so."""
    family = registry.tasks.family(trial.task)
    available, kind = family.cls.available(trial.source) if name == "raw" else (), family.cls.encodes
    resolved = resolve_encoder(name, options, available=available, seed=trial.seed, kind=kind)
    encoder = resolved.encoder.to(pick_device(trial.training().device))
    if resolved.origin in family.cls.calibrated(trial.config) and trial.probe != "finetune":
        batches = family.cls.unlabelled(trial.config, encoder, trial.source, trial.seed)
        calibrate(encoder, (points.to(device_of(encoder)) for points in batches))
    return resolved


def run_probe(
    trial: Trial,
    resolved: Resolved,
    name: str,
    *,
    held: Any = None,
    run: Path | None = None,
    show: bool = False,
    encoder_options: Mapping[str, Any] | None = None,
    then: Callable[[Any], Mapping[str, Any]] = lambda task: {},
) -> Evaluation:
    """Trains the probe and evaluates it on all of the split `val`.

    Args:
        trial: what to do.
        resolved: the encoder; `finetune` changes its weights.
        name: of the encoder, for the record.
        held: frozen features computed before by the same encoder.
        run: folder to keep; by default a temporary one.
        show: progress on standard error.
        encoder_options: options that the encoder was made with, for the record.
        then: measures more with the trained task.
    """
    family, config = registry.tasks.family(trial.task), trial.training()
    with seeded(trial.seed):
        task = family.cls(
            trial.config,
            encoder=resolved.encoder,
            source=trial.source,
            probe=trial.probe,
            labels=trial.labels,
            seed=trial.seed,
            held=held,
        )
    options = {
        "task": dict(trial.task_options),
        "train": dict(trial.train_options),
        "data": dict(trial.source.options),
        "encoder": dict(encoder_options or {}),
    }
    kept = run and resolved.origin == "run"  # a path says nothing of the weights that lie there
    weights = {"weights": encoder_digest(Path(name))} if kept else {}
    settings = {
        "task": trial.task,
        "probe": trial.probe,
        "labels": trial.labels,
        "encoder": {"name": name, "options": options["encoder"], **weights},
        "data": {"name": trial.source.name, "options": trial.source.resolved()},
        "task_options": to_options(trial.config),
        "seed": trial.seed,
    }
    if getattr(task.data, "in_memory", False):
        config = replace(config, workers=0)  # nothing is left for them, and every tensor would take a file handle
    with TemporaryDirectory() as temporary:
        try:
            summary = train(task, config, run or Path(temporary) / "run", settings=settings, show=show)
        except Terminated as stopped:
            if run is None:
                stopped.message = "stopped by SIGTERM; nothing of the probe is kept (a folder for --run would be)"
            raise
    numbers = summary.metrics
    return Evaluation(
        task=trial.task.partition(".")[0],
        probe=trial.probe,
        metrics={key: value for key, value in numbers.items() if "/" not in key},
        per_class={key.partition("/")[2]: value for key, value in numbers.items() if key.startswith("iou/")},
        encoder=name,
        origin=resolved.origin,
        data=trial.source.name,
        labels=trial.labels,
        steps=config.steps,
        seed=trial.seed,
        options={part: values for part, values in options.items() if values},
        versions=versions(),
        further=then(task),
        projector=str(options["encoder"].get("projector", "")),
        preset=trial.task.partition(".")[2] or registry.tasks.presets(family.name)[0],
    )


def draw(title: str, header: Sequence[str], rows: Sequence[Sequence[str]], lines_after: Iterable[int] = ()) -> str:
    """A table as text under its title, first column left, the others right."""
    from io import StringIO

    from rich.console import Console
    from rich.table import Table

    table, breaks = Table(), set(lines_after)
    for number, name in enumerate(header):
        table.add_column(name, justify="left" if number == 0 else "right")
    for number, row in enumerate(rows, 1):
        table.add_row(*row, end_section=number in breaks)
    buffer = StringIO()
    Console(file=buffer, width=120).print(table)
    return f"{title}\n{buffer.getvalue().rstrip()}"

"""What pre-training is worth: the table of a pre-trained encoder beside its controls, and the verdict.

A margin is clear when the worst pre-trained seed is above the best seed of every control, and the means differ by
at least what `WANTED` says for this data; of other data only the differences are told, without a verdict.
"""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import product
from pathlib import Path
from statistics import fmean
from tempfile import TemporaryDirectory
from types import MappingProxyType
from typing import Any, NamedTuple

from splatlearn import registry
from splatlearn.config import to_options
from splatlearn.encoders.base import Encoder
from splatlearn.engine.checkpoint import replace_file
from splatlearn.engine.jobs import Job, require_done, run_jobs
from splatlearn.engine.jobs_local import Processes
from splatlearn.errors import ConfigError
from splatlearn.tasks.encoders import resolve_encoder
from splatlearn.tasks.evaluation import Evaluation, Trial, draw, find_encoder, run_probe

Part = Callable[[], list[Evaluation]]


class Wanted(NamedTuple):
    """Least differences of the means for a clear margin, points of mIoU."""

    over_random: float
    over_raw: float


WANTED: Mapping[str, Wanted] = MappingProxyType(
    {"rooms": Wanted(8.0, 3.0), "streets": Wanted(5.0, 5.0), "camvid": Wanted(3.0, 3.0)}
)
"""World, or name of a data set's folder -> what is a clear margin there (our default)."""


@dataclass(frozen=True)
class Margin:
    """A pre-trained encoder against its controls, linear probes with all labels, points of mIoU.

    Args:
        pretrained, random, raw: one value a seed.
        wanted: what a clear margin is on this data; None where nobody has said.
        unit: of the values.
    """

    pretrained: tuple[float, ...]
    random: tuple[float, ...]
    raw: tuple[float, ...]
    wanted: Wanted | None
    unit: str = "mIoU"

    @property
    def over_random(self) -> float:
        """Difference of the means."""
        return fmean(self.pretrained) - fmean(self.random)

    @property
    def over_raw(self) -> float:
        """Difference of the means."""
        return fmean(self.pretrained) - fmean(self.raw)

    @property
    def clear(self) -> bool | None:
        """Whether this is a clear margin; None where nobody has said what that is on this data."""
        if self.wanted is None:
            return None
        apart = min(self.pretrained) > max(*self.random, *self.raw)
        return apart and self.over_random >= self.wanted.over_random and self.over_raw >= self.wanted.over_raw

    def __str__(self) -> str:
        word = {True: "A clear margin", False: "NOT a clear margin", None: "The margin"}[self.clear]
        least, also = "", ""
        if self.wanted is not None:
            least, also = f" (at least {self.wanted[0]:g} wanted)", f" (at least {self.wanted[1]:g})"
        control = max(*self.random, *self.raw)
        random, raw = f"{self.over_random:+.1f} {self.unit}", f"{self.over_raw:+.1f}"
        return (
            f"{word}: {random} over random{least}, {raw} over raw inputs{also}; "
            f"worst pre-trained seed {min(self.pretrained):.1f}, best seed of a control {control:.1f}"
        )


@dataclass(frozen=True)
class Comparison:
    """All probes of a table, and what they say.

    Args:
        evaluations: one a method, share of labels and seed.
    """

    evaluations: tuple[Evaluation, ...]

    @property
    def headline(self) -> str:
        """The number that methods are compared by."""
        return registry.tasks.family(self.evaluations[0].task).cls.headline

    def values(self, origin: str, probe: str, labels: float, metric: str = "", teacher: str = "") -> tuple[float, ...]:
        """One number a seed, by seed.

        Args:
            origin, probe, labels: of the rows.
            metric: by default the headline.
            teacher: whose own features these are, or after whose projector of the run.
        """
        chosen = [e for e in self.evaluations if (e.origin, e.probe, e.labels) == (origin, probe, labels)]
        chosen = [e for e in chosen if _teacher(e) == teacher]
        return tuple(e.metrics[metric or self.headline] for e in sorted(chosen, key=lambda e: e.seed))

    @property
    def margin(self) -> Margin:
        """The verdict at the largest share of labels."""
        most = max(e.labels for e in self.evaluations if e.probe == "linear")
        pretrained, random, raw = (self.values(origin, "linear", most) for origin in ("run", "random", "raw"))
        first = self.evaluations[0]
        name = Path(first.data).name.partition(".")[0].lower() if self.headline == "miou" else ""
        return Margin(pretrained, random, raw, WANTED.get(name), NUMBERS.get(self.headline, self.headline))

    @property
    def transfer(self) -> dict[float, float]:
        """Share of labels -> mean mIoU of fine-tuning less that of training from scratch."""
        shares = sorted({e.labels for e in self.evaluations if e.probe == "finetune"}, reverse=True)
        both = {s: [self.values(origin, "finetune", s) for origin in ("run", "random")] for s in shares}
        return {s: fmean(tuned) - fmean(scratch) for s, (tuned, scratch) in both.items() if tuned and scratch}

    def to_dicts(self) -> list[dict[str, Any]]:
        """Plain data, one mapping a probe."""
        return [e.to_dict() for e in self.evaluations]

    def write(self, path: Path) -> None:
        """Writes evaluations and verdict as JSON, whole or not at all."""
        verdict = {
            "clear": self.margin.clear,
            "over_random": self.margin.over_random,
            "over_raw": self.margin.over_raw,
        }
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_file(path, json.dumps({"verdict": verdict, "evaluations": self.to_dicts()}, indent=2) + "\n")

    def rows(self) -> list[list[str]]:
        """Header and rows: method, share of labels, mean and values of the headline by seed, means of the others."""
        further = [name for name in self.evaluations[0].metrics if name != self.headline]
        keys = dict.fromkeys((e.labels, e.probe, e.origin, _teacher(e)) for e in self.evaluations)
        order = list(METHODS)
        titles = [NUMBERS.get(name, name) for name in (self.headline, *further)]
        rows = [["method", "labels", titles[0], "by seed", *titles[1:]]]
        for labels, probe, origin, name in sorted(keys, key=lambda k: (-k[0], order.index((k[2], k[1])), k[3])):
            first, *others = (self.values(origin, probe, labels, metric, name) for metric in (self.headline, *further))
            by_seed = ", ".join(f"{value:.1f}" for value in first)
            means = [f"{fmean(of):.{1 if fmean(of) >= 10 else 2}f}" for of in others]
            method = METHODS[origin, probe].format(teacher=name)
            if origin == "run" and name:
                method = f"{method}, after its projector for {name}"
            rows.append([method, f"{100 * labels:g} %", f"{fmean(first):.1f}", by_seed, *means])
        return rows

    def __str__(self) -> str:
        header, *rows = self.rows()
        unit = NUMBERS.get(self.headline, self.headline)
        tuned = [f"Fine-tuned less from scratch at {100 * s:g} %: {d:+.1f} {unit}" for s, d in self.transfer.items()]
        return "\n".join([draw(self.evaluations[0].task, header, rows), str(self.margin), *tuned])


NUMBERS = {"miou": "mIoU", "macc": "mAcc", "rmse": "RMSE", "rel": "AbsRel", "knn": "kNN"}
"""Numbers as a reader knows them."""
METHODS = {
    ("run", "linear"): "pre-trained, frozen: linear probe",
    ("random", "linear"): "random, frozen: linear probe",
    ("raw", "linear"): "raw inputs: linear probe",
    ("teacher", "linear"): "teacher {teacher}: linear probe",
    ("run", "decoder"): "pre-trained, frozen: decoder probe",
    ("random", "decoder"): "random, frozen: decoder probe",
    ("raw", "decoder"): "raw inputs: decoder probe",
    ("run", "finetune"): "pre-trained, fine-tuned",
    ("random", "finetune"): "from scratch",
    ("teacher", "decoder"): "teacher {teacher}: decoder probe",
    ("raw", "finetune"): "raw inputs: linear probe, augmented",
}
"""(origin, probe) -> what a reader calls it, in the order of the table."""


def _teacher(evaluation: Evaluation) -> str:
    """The teacher that a row is of, or whose projector the features come after."""
    teacher = evaluation.encoder.partition(":")[2] if evaluation.origin == "teacher" else ""
    return teacher or evaluation.projector


def compare_with_controls(
    trial: Trial,
    runs: Sequence[Path],
    *,
    seeds: int = 3,
    labels: Sequence[float] = (1.0, 0.1),
    finetune_labels: Sequence[float] = (0.1,),
    finetune_seeds: int | None = None,
    teachers: Mapping[str, Mapping[str, Any]] = MappingProxyType({}),
    projectors: Sequence[str] = (),
    jobs: int = 1,
    tell: Callable[[str], None] = lambda text: None,
) -> Comparison:
    """The table: pre-trained, random and raw, frozen, with linear probes; fine-tuned and from scratch.

    Width, steps and every other setting are the same for all. The clouds of `val` are the same for every seed; a
    seed changes new weights, the order of samples, and which labels are kept.

    Args:
        trial: the task and its settings; its `probe`, `labels` and `seed` are replaced.
        runs: pre-trained runs of one kind of encoder; the first seed takes the first run, and so on, round and round.
        seeds: number of seeds, from `trial.seed` on.
        labels: shares of the labels for the linear probes.
        finetune_labels: shares of the labels for fine-tuning and training from scratch.
        finetune_seeds: number of seeds of those two rows, by default all; each takes longer than all probes of a seed.
            Tasks without that probe have none.
        teachers: name -> options: what each teacher itself is worth, in a row of its own.
        projectors: teachers: what the runs' features are worth after their projectors for these, likewise.
        jobs: parts of the table at the same time, in processes that share the cores.
        tell: gets a line when something begins, or is done by one of several `jobs`.

    Raises:
        ConfigError: the runs hold different encoders.
        UserError: a part failed.
    """
    like, tunable = _one_kind(runs), "finetune" in registry.tasks.family(trial.task).cls.probes
    random = f"random:{like.name}", to_options(like.config)
    of_seed = {trial.seed + k: str(runs[k % len(runs)]) for k in range(seeds)}
    frozen = replace(trial, probe="linear")
    parts: dict[str, Part] = {}
    for run in dict.fromkeys(of_seed.values()):
        own = [seed for seed in of_seed if of_seed[seed] == run]
        parts[f"linear probe of {run}"] = partial(_linear, frozen, run, None, own, labels)
        for name in projectors:
            what = f"linear probe of {run} after its projector for {name}"
            parts[what] = partial(_linear, frozen, run, {"projector": name}, own, labels)
    parts["linear probe of raw"] = partial(_linear, frozen, "raw", None, [*of_seed], labels)
    for seed in of_seed:  # random weights differ from seed to seed, and so do their features
        parts[f"seed {seed}: linear probe of {random[0]}"] = partial(_linear, frozen, *random, [seed], labels)
    for name, options in teachers.items():
        parts[f"linear probe of teacher {name}"] = partial(
            _linear, frozen, f"teacher:{name}", options, [*of_seed], labels
        )
    for seed, run in [*of_seed.items()][:finetune_seeds] if tunable else []:
        for share, (name, options) in product(finetune_labels, ((run, None), random)):
            tuned = replace(trial, probe="finetune", seed=seed, labels=share)
            what = f"seed {seed}: training everything from {name}, {100 * share:g} % of the labels"
            parts[what] = partial(_tuned, tuned, name, options)
    return Comparison(tuple(_run(parts, jobs, tell)))


def _run(parts: Mapping[str, Part], jobs: int, tell: Callable[[str], None]) -> list[Evaluation]:
    """All parts, one after another here, or `jobs` at a time in processes, which hand over files."""
    if jobs == 1:
        found = []
        for name, part in parts.items():
            tell(name)
            found += part()
        return found
    with TemporaryDirectory() as folder:
        files = [Path(folder) / f"{number}.json" for number in range(len(parts))]
        work = [Job(name, partial(_write, part, file)) for (name, part), file in zip(parts.items(), files)]
        backend = Processes(jobs, keep=True)
        statuses = run_jobs(work, backend, retries=0, watch=lambda one: tell(f"{one.name}: {one.state}"))
        require_done(statuses)
        return [Evaluation(**values) for file in files for values in json.loads(file.read_text())]


def _write(part: Part, file: Path, attempt: int) -> Mapping[str, float]:
    file.write_text(json.dumps([evaluation.to_dict() for evaluation in part()]))
    return {}


def _linear(
    trial: Trial, name: str, options: Mapping[str, Any] | None, seeds: Sequence[int], labels: Sequence[float]
) -> list[Evaluation]:
    """Linear probes of one encoder; its features are held in memory for the length of this call, no longer."""
    resolved = find_encoder(replace(trial, seed=seeds[0]), name, options)
    held = registry.tasks.family(trial.task).cls.hold(trial.config, resolved.encoder, trial.source)
    return [
        run_probe(replace(trial, seed=seed, labels=share), resolved, name, held=held, encoder_options=options)
        for seed, share in product(seeds, labels)
    ]


def _tuned(trial: Trial, name: str, options: Mapping[str, Any] | None) -> list[Evaluation]:
    return [run_probe(trial, find_encoder(trial, name, options), name)]


def _one_kind(runs: Iterable[Path]) -> Any:
    encoders = [resolve_encoder(str(run), kind=Encoder).encoder for run in runs]
    if not encoders:
        raise ConfigError("no run to compare with its controls")
    kinds = {(e.name, json.dumps(to_options(e.config), sort_keys=True)) for e in encoders}
    if len(kinds) > 1:
        raise ConfigError(f"the runs hold different encoders: {', '.join(sorted(name for name, _ in kinds))}")
    return encoders[0]

"""Robustness of lidar segmentation: Robo3D's corruption errors and resilience rates, and what they are computed from.

The corruptions are made by `data/corruptions`, or read from Robo3D's own corrupted sets where those are on disk. Only
mIoUs of the official sets can be compared with published ones, and only with these does the published baseline go.

Legend: mIoU, CE, RR and their means are in percent. A corruption has one mIoU a severity, or their mean.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from splatlearn.data.corruptions import CORRUPTIONS, SEVERITIES, CorruptedScene
from splatlearn.data.kitti import SemanticKittiReader
from splatlearn.data.nuscenes import NuScenesReader
from splatlearn.data.sampling import split_scenes
from splatlearn.data.scans import LidarReader, LidarScene
from splatlearn.data.scene import Scene, Source
from splatlearn.errors import BadData, UserError, nearest
from splatlearn.tasks.evaluation import draw
from splatlearn.tasks.scores import Scores
from splatlearn.tasks.segmentation import Segmentation, cloud_data

CLEAN = "clean"
_ROWS = {
    "SemanticKITTI-C": (62.76, 55.87, 53.99, 53.28, 32.92, 56.32, 58.34, 54.43, 46.05),
    "nuScenes-C": (75.76, 53.64, 73.91, 40.35, 73.39, 68.54, 26.58, 63.83, 50.95),
}
BASELINES: Mapping[str, Mapping[str, float]] = {
    name: dict(zip((CLEAN, *CORRUPTIONS), row)) for name, row in _ROWS.items()
}
"""mIoU of Robo3D's baseline, MinkUNet18 (cr 1.0), by corrupted set: clean, and the mean over the severities of each
corruption. Source: the tables in the README of ldkong1205/Robo3D."""


Corrupt = Callable[[str, str], Sequence[Scene]]
"""Corruption and severity -> the validation scans, spoilt."""


class Layout(NamedTuple):
    """Where the scans of an official corrupted set lie within a folder `CORRUPTION/SEVERITY`.

    Args:
        reader: of the original set, whose files have the same names and formats.
        scans: folder of the scans.
        labels: folder of the labels.
        count: scans of the validation set, which the published baseline was measured on.
    """

    reader: type[LidarReader]
    scans: str
    labels: str
    count: int


LAYOUTS: Mapping[str, Layout] = {
    "SemanticKITTI-C": Layout(SemanticKittiReader, "velodyne", "labels", 4071),
    "nuScenes-C": Layout(NuScenesReader, "samples/LIDAR_TOP", "lidarseg/v1.0-trainval", 6019),
}
"""By corrupted set. Source: docs/DATA_PREPARE.md of ldkong1205/Robo3D, whose names of corruptions and severities are
those of `data/corruptions`."""


@dataclass(frozen=True, kw_only=True)
class RobustnessTable:
    """What a model keeps under corruptions.

    Args:
        clean: mIoU without corruption.
        corrupted: mIoU by corruption, light to heavy; one number is the mean of them.
        baseline: mean mIoU by corruption of what the model is compared with, measured on the same scans; empty where
            there is none, and then there are no corruption errors.
        name: of the data and of who corrupted them.

    Raises:
        UserError: a corruption is missing or unknown, or a mIoU is no percentage.
    """

    clean: float
    corrupted: Mapping[str, Sequence[float]]
    baseline: Mapping[str, float]
    name: str = ""

    def __post_init__(self) -> None:
        check_complete(self.corrupted)
        if self.baseline:
            check_complete({key: [value] for key, value in self.baseline.items() if key != CLEAN}, "baseline")

    @property
    def errors(self) -> dict[str, float]:
        """CE of each corruption; empty without a baseline."""
        return corruption_errors(self.corrupted, self.baseline) if self.baseline else {}

    @property
    def rates(self) -> dict[str, float]:
        """RR of each corruption; zero where nothing was right to begin with."""
        return resilience_rates(self.corrupted, self.clean) if self.clean else dict.fromkeys(CORRUPTIONS, 0.0)

    @property
    def metrics(self) -> dict[str, float]:
        """`clean`, `mce` (with a baseline), `mrr`, and `miou/CORRUPTION`, the mean over the severities."""
        errors = {"mce": _mean(list(self.errors.values()))} if self.baseline else {}
        means = {f"miou/{name}": _mean(values) for name, values in self.corrupted.items()}
        return {CLEAN: self.clean, **errors, "mrr": _mean(list(self.rates.values())), **means}

    def means(self) -> dict[str, float]:
        """What another table takes as its `baseline`."""
        return {CLEAN: self.clean, **{name: _mean(values) for name, values in self.corrupted.items()}}

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        corrupted = {name: list(values) for name, values in self.corrupted.items()}
        return {
            "name": self.name,
            "metrics": self.metrics,
            "corrupted": corrupted,
            "errors": self.errors,
            "rates": self.rates,
        }

    def __str__(self) -> str:
        header = ["", *SEVERITIES, "mean", "CE", "RR"]
        rows = [[CLEAN, "", "", "", f"{self.clean:.2f}", "", ""]]
        for name, rate in self.rates.items():
            values = self.corrupted[name]
            cells = [f"{value:.2f}" for value in values] if len(values) == len(SEVERITIES) else [""] * len(SEVERITIES)
            error = f"{self.errors[name]:.2f}" if self.baseline else ""
            rows.append([name, *cells, f"{_mean(values):.2f}", error, f"{rate:.2f}"])
        total = f"{self.metrics['mce']:.2f}" if self.baseline else ""
        rows.append(["mCE, mRR", "", "", "", "", total, f"{self.metrics['mrr']:.2f}"])
        return draw(f"robustness, {self.name}, %", header, rows, lines_after={1, len(rows) - 1})


def corruption_errors(corrupted: Mapping[str, Sequence[float]], baseline: Mapping[str, float]) -> dict[str, float]:
    """CE_i = sum over severities of (100 - mIoU) / the same of the baseline: below 100 errs less than the baseline.

    Sums over the three severities are three times the mean, so means are enough.

    Args:
        corrupted: mIoU by corruption.
        baseline: mean mIoU by corruption, of `BASELINES` or of another model on the same scans.

    Raises:
        UserError: a corruption is missing or unknown.
    """
    check_complete(corrupted)
    check_complete({name: [value] for name, value in baseline.items() if name != CLEAN}, "baseline")
    return {name: 100 * (100 - _mean(corrupted[name])) / (100 - baseline[name]) for name in CORRUPTIONS}


def resilience_rates(corrupted: Mapping[str, Sequence[float]], clean: float) -> dict[str, float]:
    """RR_i = mean mIoU over severities / clean mIoU of the same model.

    Args:
        corrupted: mIoU by corruption.
        clean: mIoU without corruption.

    Raises:
        UserError: a corruption is missing or unknown, or the clean mIoU is not above zero.
    """
    check_complete(corrupted)
    if not 0 < clean <= 100:
        raise UserError(f"robustness: a clean mIoU above 0 and up to 100 is needed, got {clean}")
    return {name: 100 * _mean(corrupted[name]) / clean for name in CORRUPTIONS}


def mean_corruption_error(corrupted: Mapping[str, Sequence[float]], baseline: Mapping[str, float]) -> float:
    """mCE, the mean over the eight corruptions; 100 for the baseline itself."""
    return _mean(list(corruption_errors(corrupted, baseline).values()))


def mean_resilience_rate(corrupted: Mapping[str, Sequence[float]], clean: float) -> float:
    """mRR, the mean over the eight corruptions; 100 where nothing is lost."""
    return _mean(list(resilience_rates(corrupted, clean).values()))


def check_complete(corrupted: Mapping[str, Sequence[float]], what: str = "robustness") -> None:
    """Refuses a table with other than the eight corruptions, since the means are defined over all of them.

    Raises:
        UserError: the corruptions that are missing or unknown, or the mIoU that is no percentage.
    """
    if missing := [name for name in CORRUPTIONS if name not in corrupted]:
        raise UserError(f"{what}: mCE and mRR need all eight corruptions; missing: {', '.join(missing)}")
    if unknown := [name for name in corrupted if name not in CORRUPTIONS]:
        raise UserError(f"{what}: no corruption {unknown[0]!r}{nearest(unknown[0], CORRUPTIONS)}")
    for name, values in corrupted.items():
        if len(values) not in (1, len(SEVERITIES)) or not all(0 <= value <= 100 for value in values):
            raise UserError(
                f"{what}: {name}: one mIoU in percent for each of {', '.join(SEVERITIES)} (or their mean) is needed, "
                f"got {list(values)}"
            )


def evaluate_robustness(
    score: Callable[[Sequence[Scene]], float],
    scenes: Sequence[Scene],
    corrupt: Corrupt,
    *,
    baseline: Mapping[str, float] | None = None,
    name: str = "",
    tell: Callable[[str], None] = lambda text: None,
) -> RobustnessTable:
    """A model under the eight corruptions at three severities.

    Args:
        score: mIoU in percent of the model on scenes: trained once, without corruptions, and not adapted to them.
        scenes: validation scans with labels.
        corrupt: what they become, `generated` or `official`.
        baseline: mean mIoU by corruption of another model on the same corrupted scans (`RobustnessTable.means`).
        name: of the data, for the record.
        tell: gets a line before each of the 25 evaluations.

    Raises:
        UserError: no scenes.
    """
    if not scenes:
        raise UserError("robustness: no scenes to corrupt")

    def corrupted(corruption: str, severity: str) -> float:
        tell(f"{corruption}, {severity}")
        return score(corrupt(corruption, severity))

    tell(CLEAN)
    clean = score(scenes)
    values = {c: tuple(corrupted(c, severity) for severity in SEVERITIES) for c in CORRUPTIONS}
    return RobustnessTable(clean=clean, corrupted=values, baseline=baseline or {}, name=name)


def generated(scenes: Sequence[Scene], *, seed: int = 0, classes: Sequence[str] = (), beams: int = 64) -> Corrupt:
    """Corruptions by generators of this project.

    Args:
        scenes: scans with labels.
        seed: of the corruptions.
        classes: names of the label ids, by which ground and vehicles are known.
        beams: lasers of the sensor, for scans that do not say.
    """

    def corrupt(corruption: str, severity: str) -> list[Scene]:
        return [CorruptedScene(s, corruption, severity, seed=seed, classes=classes, beams=beams) for s in scenes]

    return corrupt


def official(scenes: Sequence[Scene], root: Path, kind: str) -> Corrupt:
    """The scans as one of Robo3D's corrupted sets has them, with the labels that lie there.

    Args:
        scenes: validation scans of the original set.
        root: folder with one folder a corruption.
        kind: of `LAYOUTS`.

    Raises:
        BadData: folders or scans are missing; the first of them are named. Or there are no whole scans with labels.
    """
    layout = LAYOUTS[kind]
    folders = [root / c / severity for c in CORRUPTIONS for severity in SEVERITIES]
    missing = [
        str(f.relative_to(root) / part)
        for f in folders
        for part in (layout.scans, layout.labels)
        if not (f / part).is_dir()
    ]
    if missing:
        raise BadData(
            f"{root}: a folder of {kind} is expected, with CORRUPTION/SEVERITY/{layout.scans} and .../{layout.labels}; "
            f"missing: {_first_of(missing)}"
        )
    scans = [scene for scene in scenes if isinstance(scene, LidarScene) and scene.labels]
    if not scans:
        raise BadData(
            f"{root}: no whole scan with labels to validate on; of fewer than five scans only parts are held out"
        )

    def files(folder: Path) -> list[tuple[Path, Path]]:
        return [
            (folder / layout.scans / s.scan.name, folder / layout.labels / s.labels.name) for s in scans if s.labels
        ]

    pairs = {folder: files(folder) for folder in folders}
    lost = [
        str(file.relative_to(root)) for pair in pairs.values() for files in pair for file in files if not file.exists()
    ]
    if lost:
        raise BadData(f"{root}: files of the validation scans are missing: {_first_of(lost)}")

    def corrupt(corruption: str, severity: str) -> list[Scene]:
        return [s.from_files(*files) for s, files in zip(scans, pairs[root / corruption / severity], strict=True)]

    return corrupt


def segmentation_score(task: Segmentation, source: Source) -> Callable[[Sequence[Scene]], float]:
    """The `score` of a trained task: mIoU over the labelled points of scenes, over the classes that occur in them.

    Every cloud is prepared as the task's own were, so that points change before voxels, crops and neighbours do.

    Args:
        task: trained; in eval mode from here on.
        source: the labelled data it was trained on.
    """
    data = cloud_data(task.config, task.encoder, source)
    device = next(task.probe.parameters()).device
    task.eval()

    def score(scenes: Sequence[Scene]) -> float:
        scores = Scores(len(task.classes), "point of the validation clouds")
        forgetful = replace(data, source=replace(source))
        for scene in scenes:
            cloud = forgetful.ready(forgetful.thin(scene)).to(device)
            scores.update(task.predict(cloud), cloud.full["label"])
        return scores.compute(task.classes)["miou"]

    return score


def check_scans(source: Source, corrupted: Path | None = None) -> None:
    """Refuses data that cannot be corrupted, before anything is trained.

    Args:
        source: of the scans.
        corrupted: folder of an official corrupted set of them.

    Raises:
        UserError: the first cloud is no lidar scan, or there is no official corrupted set of such data.
        BadData: files of the corrupted set are missing.
    """
    first = source.scenes()[0]
    if "intensity" not in first.points():
        raise UserError(f"--robustness: corruptions are of lidar scans; {first.name} has no intensity")
    if corrupted is not None:
        official(split_scenes(source.scenes(), "val"), corrupted, official_kind(source))


def official_kind(source: Source) -> str:
    """Which of `LAYOUTS` is the corrupted form of these data.

    Raises:
        UserError: none.
    """
    reader = source.reader()
    kinds = [kind for kind, layout in LAYOUTS.items() if isinstance(reader, layout.reader)]
    if not kinds:
        raise UserError(
            f"--corrupted: Robo3D has {' and '.join(LAYOUTS)}; --data {source.name} is of neither original set; "
            "--robustness alone makes corruptions for any scans"
        )
    return kinds[0]


def under_corruptions(
    task: Segmentation, source: Source, seed: int, tell: Callable[[str], None], corrupted: Path | None = None
) -> RobustnessTable:
    """`evaluate_robustness` of a trained task on the validation scans of its data.

    Args:
        task: trained.
        source: its data.
        seed: of corruptions that are made.
        tell: gets a line before each of the 25 evaluations.
        corrupted: folder of an official corrupted set, which is then read; its published baseline goes with the whole
            validation set alone.

    Raises:
        UserError: as `check_scans`.
    """
    check_scans(source, corrupted)
    scenes = cloud_data(task.config, task.encoder, source).scenes("val")["all"]
    score = segmentation_score(task, source)
    if corrupted is None:
        made = generated(scenes, seed=seed, classes=task.classes)
        return evaluate_robustness(score, scenes, made, name=f"{source.name}, corrupted by our generators", tell=tell)
    kind = official_kind(source)
    read = official(scenes, corrupted, kind)
    whole = len(scenes) == LAYOUTS[kind].count
    name = kind if whole else f"{kind}, {len(scenes)} of {LAYOUTS[kind].count} scans"
    baseline = BASELINES[kind] if whole else {}
    return evaluate_robustness(score, scenes, read, baseline=baseline, name=name, tell=tell)


def _first_of(names: Sequence[str], most: int = 4) -> str:
    """The first few, and how many more there are."""
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)

"""Semantic segmentation of points: a class for every point of a labelled cloud.

Legend: N points of the cloud, M kept points (one a voxel), C channels, K classes.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from splatlearn.config import require
from splatlearn.data.sampling import crop_nearest
from splatlearn.data.scene import Source
from splatlearn.encoders.base import PointEncoder
from splatlearn.engine.trainable import Progress, Step
from splatlearn.errors import BadData
from splatlearn.losses.segmentation import cross_entropy, lovasz_softmax
from splatlearn.registry import tasks
from splatlearn.structures import Points
from splatlearn.tasks.base import Levels, ProbeName, chosen_levels
from splatlearn.tasks.clouds import Cloud, CloudData, Held, HeldData, LabelUnit
from splatlearn.tasks.points import PointTask, check_inputs, dense
from splatlearn.tasks.probes import LinearProbe
from splatlearn.tasks.scores import Scores


@dataclass(frozen=True, kw_only=True)
class SegmentationConfig:
    """Settings of semantic segmentation.

    Args:
        voxel: clouds are thinned to one point a voxel of this edge, metres; every point of the cloud then gets the
            class of the one that stands for it (Pointcept's ScanNet recipes: 0.02). 0 keeps every point.
        nearest: a point gets the class of the nearest kept point instead (ScaLR's code).
        crop: most points of a training sample when the encoder trains.
        augmentation: of these samples: that of indoor clouds, or of lidar scans.
        label_unit: what a share of the labels counts: labelled points of every cloud, or clouds.
        rows: points of a cloud in a training sample when features are frozen.
        levels: levels of a frozen encoder that the head sees (Sonata: all); a trained one shows its finest.
        lovasz: weight of the Lovasz loss beside cross-entropy (Sonata's probes: 1).
        steps: optimiser steps of a probe on frozen features.
        batch: clouds a step of such a probe.
        learning_rates: peaks for the layers of a linear probe, highest first; the layer with the least cross-entropy
            on the clouds kept for tuning is used.
        tuning: share of the training clouds that is kept for this choice and not trained on; where there are fewer
            than five, the training clouds decide.
        decoder_learning_rate: peak of a decoder probe.
        finetune_steps: optimiser steps when the encoder trains.
        finetune_batch: crops a step when the encoder trains.
        finetune_learning_rate: peak when the encoder trains, for pre-trained and new weights alike.
        finetune_head_rate: times the head's rate is that; a head starts from nothing even where the encoder does not.
        finetune_layer_decay: factor of the rate per block, counted from the head; 1 is off (ScaLR: 0.95 or 0.99).
        weight_decay: of AdamW.
        calibration: batches without gradient that set a frozen encoder's batch-norm statistics.
        calibrate: which frozen encoders get that: `random` ones, or `all`, which adapts pre-trained ones to these
            clouds too, still without labels.
        memory: GiB that the features of frozen encoders may take; where they need more, the encoder runs at every
            step, on crops.
    """

    voxel: float = 0.02
    nearest: bool = False
    crop: int = 20000
    augmentation: Literal["indoor", "lidar"] = "indoor"
    label_unit: LabelUnit = "points"
    rows: int = 4096
    levels: Levels = "all"
    lovasz: float = 0.0
    steps: int = 600
    batch: int = 4
    learning_rates: tuple[float, ...] = (5e-1, 1e-1, 2e-2, 4e-3)
    tuning: float = 0.2
    decoder_learning_rate: float = 5e-3
    finetune_steps: int = 400
    finetune_batch: int = 4
    finetune_learning_rate: float = 2e-3
    finetune_head_rate: float = 30.0
    finetune_layer_decay: float = 1.0
    weight_decay: float = 0.02
    calibration: int = 50
    calibrate: Literal["random", "all"] = "random"
    memory: float = 4.0

    def __post_init__(self) -> None:
        counts = ("crop", "rows", "steps", "batch", "finetune_steps", "finetune_batch")
        rates = ("decoder_learning_rate", "finetune_learning_rate", "finetune_head_rate", "finetune_layer_decay")
        floors = ("voxel", "lovasz", "weight_decay", "calibration", "memory")
        at = {name: getattr(self, name) for name in (*counts, *rates, *floors)}
        require(
            {
                **{f"{name}: at least 1 is needed, got {at[name]}": at[name] >= 1 for name in counts},
                **{f"{name}: above zero is needed, got {at[name]}": at[name] > 0 for name in rates},
                **{f"{name}: zero or more is needed, got {at[name]}": at[name] >= 0 for name in floors},
                f"learning_rates: one or more above zero are needed, got {self.learning_rates}": (
                    min(self.learning_rates, default=0) > 0
                ),
                f"tuning: a share in [0, 1) is needed, got {self.tuning}": 0 <= self.tuning < 1,
            }
        )


LIDAR: dict[str, Any] = {
    "voxel": 0.1,
    "nearest": True,
    "augmentation": "lidar",
    "label_unit": "clouds",
    "lovasz": 1.0,
    "weight_decay": 0.003,
    "finetune_layer_decay": 0.99,
}
"""As ScaLR's downstream code: voxels, augmentation, losses, decay by layer, and its probes' weight decay."""


@tasks.register(
    "segmentation",
    SegmentationConfig,
    {
        "small": {},
        "tiny": {
            "voxel": 0.05,
            "crop": 6000,
            "rows": 2048,
            "steps": 200,
            "finetune_steps": 130,
            "finetune_batch": 2,
        },
        "lidar": LIDAR,
        "lidar-tiny": {**LIDAR, "crop": 6000, "steps": 200, "finetune_steps": 130, "finetune_batch": 2},
    },
)
class Segmentation(PointTask[Cloud]):
    """Semantic classes of points.

    Frozen features do not change, so they are computed once for every cloud and the probe trains on random points
    of them, `config.memory` permitting. Only what trains the encoder is augmented.

    Args:
        config: settings.
        encoder: the network under test; already calibrated where it is random.
        source: labelled clouds.
        probe: what is trained.
        labels: share of the labelled points of each training cloud that is used.
        seed: chooses them.
        held: features computed before, for a frozen encoder; computed here where it is left out.

    Raises:
        UserError: the clouds lack labels or inputs of the encoder, or labels lie outside the classes.
    """

    data: CloudData | HeldData
    validation: CloudData | HeldData

    def __init__(
        self,
        config: SegmentationConfig,
        *,
        encoder: PointEncoder,
        source: Source,
        probe: ProbeName = "linear",
        labels: float = 1.0,
        seed: int = 0,
        held: HeldData | None = None,
    ) -> None:
        clouds = cloud_data(config, encoder, source, labels, seed)
        classes = class_names(clouds)
        frozen = probe != "finetune"
        levels = config.levels if frozen else "finest"
        super().__init__(encoder, probe, len(classes), levels, heads=len(config.learning_rates))
        self.config, self.classes = config, classes
        if frozen and held is None:
            held = self.hold(config, encoder, source)
        tuning = config.tuning if probe == "linear" and len(config.learning_rates) > 1 else 0.0
        if frozen and held is not None:
            held = held.with_labels(labels, seed, config.label_unit).for_tuning(tuning)
            self.data, self.validation = held, replace(held, whole=True)
        else:
            augment = "none" if frozen else config.augmentation
            self.data = replace(clouds, crop=config.crop, augment=augment, tuning=tuning)
            self.validation = replace(self.data, whole=True, crop=0, augment="none")

    @classmethod
    def training(cls, config: SegmentationConfig, probe: ProbeName) -> dict[str, Any]:
        """AdamW with one cycle (Sonata's probes)."""
        full, highest = probe == "finetune", config.learning_rates[0]
        peaks = {"linear": highest, "decoder": config.decoder_learning_rate, "finetune": config.finetune_learning_rate}
        each = {f"probe.heads.{i}.*": rate / highest for i, rate in enumerate(config.learning_rates)}
        rates = {"linear": each, "decoder": {}, "finetune": {"probe.*": config.finetune_head_rate}}
        return {
            "steps": config.finetune_steps if full else config.steps,
            "batch": config.finetune_batch if full else config.batch,
            "learning_rate": peaks[probe],
            "rates": rates[probe],
            "layer_decay": config.finetune_layer_decay if full else 1.0,
            "weight_decay": config.weight_decay,
            "schedule": "one-cycle",
            "warmup": 0.1,
        }

    @classmethod
    def available(cls, source: Source) -> tuple[str, ...]:
        """What the first training cloud carries."""
        scenes = CloudData(source=source).scenes("train")["all"]
        return tuple(scenes[0].points().attributes) if scenes else ()

    @classmethod
    def calibrated(cls, config: SegmentationConfig) -> frozenset[str]:
        """As `config.calibrate` says."""
        return frozenset({"random"} if config.calibrate == "random" else {"random", "run"})

    @classmethod
    def unlabelled(
        cls, config: SegmentationConfig, encoder: PointEncoder, source: Source, seed: int
    ) -> Iterator[Points]:
        """`config.calibration` crops, cloud after cloud."""
        data = cloud_data(config, encoder, source)
        scenes = data.scenes("train")["all"]
        for number in range(config.calibration):
            points = data.thin(scenes[number % len(scenes)]).points
            yield encoder.config.precompute(crop_nearest(points, config.crop, np.random.default_rng([seed, number])))

    @classmethod
    def hold(cls, config: SegmentationConfig, encoder: PointEncoder, source: Source) -> HeldData | None:
        """Every cloud with the attribute `feature` (M C), on the host; None where `config.memory` would not do.

        The size is judged by the first cloud.
        """
        data = cloud_data(config, encoder, source)
        levels = chosen_levels(encoder, config.levels)
        counts = [len(data.scenes(split)["all"]) for split in ("train", "val")]
        points = len(next(data.each("train")).points)
        width = sum(encoder.channels[level] for level in levels)
        if sum(counts) * points * width * 4 > config.memory * 2**30:
            return None
        return hold_features(encoder, data, levels, config.rows)

    def forward(self, batch: Cloud, progress: Progress) -> Step:
        """Cross-entropy over the labelled points, and weighted Lovasz; both summed over a linear probe's layers."""
        features, label = self.features(batch.points), batch.points["label"]
        outputs = self.probe.each(features) if isinstance(self.probe, LinearProbe) else [self.probe(features)]
        entropies = torch.stack([cross_entropy(logits, label) for logits in outputs])
        losses = {"cross_entropy": entropies.sum()}
        if self.config.lovasz:
            parts = torch.stack([lovasz_softmax(logits, label) for logits in outputs])
            losses["lovasz"] = self.config.lovasz * parts.sum()
        return Step(losses, {"least_cross_entropy": entropies.detach().min()})

    @torch.no_grad()
    def evaluate(self, batches: Iterable[Cloud]) -> dict[str, float]:
        """`miou`, `macc` and `accuracy` in percent over all labelled points of the clouds, each predicted once, and
        `iou/CLASS`. The means are over the classes that occur in the labels."""
        if isinstance(self.probe, LinearProbe) and len(self.probe.heads) > 1:
            self.probe.best.fill_(self._best_layer(self.probe))
        scores = Scores(len(self.classes), "point of the validation clouds")
        for batch in batches:
            scores.update(self.predict(batch), batch.full["label"])
        return scores.compute(self.classes)

    def _best_layer(self, probe: LinearProbe) -> int:
        """The layer with the least cross-entropy over the labelled points of the clouds kept for tuning."""
        sums = torch.zeros(len(probe.heads), dtype=torch.float64)
        for cloud in self.data.each("tune"):
            rows = (cloud.points["label"] >= 0).nonzero().squeeze(1)
            points = (cloud.points if "feature" not in cloud.points else cloud.points.rows(rows)).to(probe.best.device)
            outputs, label = probe.each(self.features(points)), points["label"]
            sums += torch.stack([cross_entropy(o, label) * (label >= 0).sum() for o in outputs]).double().cpu()
        return int(sums.argmin())

    @torch.no_grad()
    def predict(self, batch: Cloud) -> Tensor:
        """(N) int64, the class of every point of the clouds."""
        prediction = self.probe(self.features(batch.points)).argmax(1)
        starts = torch.tensor(batch.points.offsets[:-1], device=prediction.device)
        return prediction[batch.full["kept"] + starts[batch.full.item]]


def cloud_data(
    config: SegmentationConfig, encoder: PointEncoder, source: Source, labels: float = 1.0, seed: int = 0
) -> CloudData:
    """The clouds with what the encoder takes.

    Raises:
        UserError: the first cloud of a split lacks labels or inputs.
    """
    data = CloudData(
        source=source,
        encoder=encoder.config,
        voxel=config.voxel,
        nearest=config.nearest,
        labels=labels,
        unit=config.label_unit,
        seed=seed,
        classes=len(source.reader().classes),
    )
    for split in ("train", "val"):
        scenes = [scene for group in data.scenes(split).values() for scene in group]
        if not scenes:
            raise BadData(f"--data {source.name}: segmentation needs clouds to train on and others to validate on")
        points = scenes[0].points()
        check_inputs(encoder, points, f"{source.name} ({scenes[0].name})", scenes[0].up)
        if "label" not in points:
            raise BadData(f"--data {source.name}: {scenes[0].name} has no labels, which segmentation needs")
    return data


def class_names(data: CloudData) -> tuple[str, ...]:
    """The reader's names; where it has none, `class 0`... up to the highest label of any cloud."""
    names = tuple(data.source.reader().classes)
    if names:
        return names
    highest = max(int(cloud.full["label"].max()) for split in ("train", "val") for cloud in data.each(split))
    return tuple(f"class {number}" for number in range(max(highest, 0) + 1))


def hold_features(encoder: PointEncoder, data: CloudData, levels: Sequence[int], rows: int) -> HeldData:
    """Every cloud with the attribute `feature` (M C) of a frozen encoder, in memory on the host; all labels.

    Args:
        encoder: in eval mode from here on.
        data: the clouds.
        levels: of the encoder.
        rows: most points of a training sample.
    """
    device = next((p.device for p in encoder.parameters()), torch.device("cpu"))
    encoder.eval()

    def held(cloud: Cloud) -> Held:
        feature = dense(encoder, cloud.points.to(device), levels).to(cloud.points.device)
        attributes = {"label": cloud.points["label"], "feature": feature}
        return Held(replace(cloud, points=replace(cloud.points, attributes=attributes)))

    train, val = (tuple(map(held, data.each(split))) for split in ("train", "val"))
    return HeldData(train=train, val=val, rows=rows)

"""Classes of whole images, from a frozen encoder's summary: a linear layer, and the nearest neighbours.

Legend: N images, C channels, K classes.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice, product
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from torchmetrics.functional.classification import multiclass_accuracy

from splatlearn.config import require
from splatlearn.data.image_folders import SPLITS
from splatlearn.data.photo_augment import centre_photo
from splatlearn.data.sampling import split_scenes
from splatlearn.data.scene import Scene, Source
from splatlearn.encoders.base import ImageEncoder
from splatlearn.engine.trainable import Progress, Step
from splatlearn.errors import BadData
from splatlearn.losses.segmentation import cross_entropy
from splatlearn.registry import tasks
from splatlearn.structures import Batch, Packed
from splatlearn.tasks.base import ProbeName, Task
from splatlearn.tasks.clouds import keep_clouds, keep_for_tuning
from splatlearn.tasks.encoders import device_of
from splatlearn.tasks.probes import LinearProbe
from splatlearn.tasks.shots import readable

RATES = (1e-1, 3e-2, 1e-2, 3e-3, 1e-3)
PENALTIES = (1e-6, 1e-4, 1e-2)


@dataclass(frozen=True, kw_only=True)
class ImageClassificationConfig:
    """Settings of classification of images.

    Args:
        tokens: side of the square grid of tokens, for every network: the middle of each image is resized to so many of
            its patches (224 pixels at a patch of 14: 16).
        steps: optimiser steps of the linear layers.
        batch: images a step.
        learning_rates, penalties: peaks of the rates of the linear layers, and weights of half their squared norm in
            the loss (UNIC's weight decay). All train at once, one for each pair; the one that classifies the most of
            the images kept for tuning is used (UNIC searches both with Optuna; the grid is ours).
        tuning: share of the training images that is kept for this choice (UNIC: a fifth).
        neighbours: of each image, whose classes are weighed by exp(cosine / temperature) (UNIC: 20).
        temperature: of these weights (UNIC: 0.07).
        memory: images whose pixels are in memory at a time while features are computed.
    """

    tokens: int = 16
    steps: int = 1000
    batch: int = 256
    learning_rates: tuple[float, ...] = RATES
    penalties: tuple[float, ...] = PENALTIES
    tuning: float = 0.2
    neighbours: int = 20
    temperature: float = 0.07
    memory: int = 16

    def __post_init__(self) -> None:
        counts = ("tokens", "steps", "batch", "neighbours", "memory")
        rules = {f"{name}: 1 or more is needed, got {getattr(self, name)}": getattr(self, name) >= 1 for name in counts}
        for name in ("learning_rates", "penalties"):
            given = getattr(self, name)
            rules[f"{name}: one or more above zero are needed, got {given}"] = min(given, default=0) > 0
        rules[f"tuning: a share in [0, 1) is needed, got {self.tuning}"] = 0 <= self.tuning < 1
        rules[f"temperature: above zero is needed, got {self.temperature}"] = self.temperature > 0
        require(rules)


@dataclass(frozen=True, kw_only=True, eq=False)
class Summaries(Packed):
    """Frozen features of images.

    Args:
        features: (N C).
        label: (N) int64.
    """

    features: Tensor
    label: Tensor


@dataclass(frozen=True, kw_only=True, eq=False)
class Classified(Batch):
    """A batch of them."""

    rows: Summaries


class HeldImage(Scene):
    """An image's features and class, in memory.

    Args:
        name: its name.
        rows: one row.
    """

    def __init__(self, name: str, rows: Summaries) -> None:
        self.name, self.rows = name, rows


@dataclass(frozen=True, kw_only=True)
class SummaryData:
    """Images in memory, as features.

    Args:
        classes: names of the K classes.
        train, val: the images.
        labels: share of the training images that is used.
        seed: chooses them; the same for every method.
        tuning: share of them that is kept for choosing settings, the split `tune`.
    """

    classes: tuple[str, ...]
    train: tuple[HeldImage, ...]
    val: tuple[HeldImage, ...]
    labels: float = 1.0
    seed: int = 0
    tuning: float = 0.0
    in_memory = True

    def scenes(self, split: str) -> Mapping[str, Sequence[HeldImage]]:
        """Images of `train`, `tune` or `val`; `bank` is train and tune together."""
        if split == "val":
            return {"all": self.val}
        used = keep_clouds(self.train, self.labels, self.seed)
        train, tune = keep_for_tuning(used, self.tuning)
        return {"all": {"train": train, "tune": tune, "bank": used}[split]}

    def shares(self) -> Mapping[str, float]:
        """By size."""
        return {}

    def sample(self, scene: Scene, rng: np.random.Generator) -> Classified:
        """One image."""
        return Classified(names=(scene.name,), rows=cast(HeldImage, scene).rows)

    def rows(self, split: str) -> Summaries:
        """All of a split."""
        return Summaries.pack([image.rows for image in self.scenes(split)["all"]])


@tasks.register("image_classification", ImageClassificationConfig, {"small": {}, "tiny": {"tokens": 8, "steps": 200}})
class ImageClassification(Task[Classified]):
    """Classes of images, linear and by neighbours.

    The class of an image is the name of its folder, below `train/` and `val/` where there are such (ImageNet's
    form). Features are the encoder's summary, its class token where it has one, computed once, without augmentation.

    Args:
        config: settings.
        encoder: frozen.
        source: folders of images.
        probe: `linear`.
        labels: share of the training images that is used.
        seed: chooses them.
        held: what `hold` gave for this encoder.
    """

    encodes = ImageEncoder
    headline = "accuracy"
    probes = ("linear",)
    probe: LinearProbe

    def __init__(
        self,
        config: ImageClassificationConfig,
        *,
        encoder: ImageEncoder,
        source: Source,
        probe: ProbeName = "linear",
        labels: float = 1.0,
        seed: int = 0,
        held: SummaryData | None = None,
    ) -> None:
        super().__init__(encoder, probe, "finest")
        self.config = config
        data = held or self.hold(config, encoder, source)
        self.classes = data.classes
        heads = len(config.learning_rates) * len(config.penalties)
        self.probe = LinearProbe(data.train[0].rows.features.shape[1], len(data.classes), heads)
        self.data = replace(data, labels=labels, seed=seed, tuning=config.tuning)
        self.validation = self.data

    @classmethod
    def training(cls, config: ImageClassificationConfig, probe: ProbeName) -> dict[str, Any]:
        """Adam with one cycle; every layer has its own rate."""
        highest = max(config.learning_rates)
        rates = [rate for rate, _ in product(config.learning_rates, config.penalties)]
        return {
            "steps": config.steps,
            "batch": config.batch,
            "learning_rate": highest,
            "rates": {f"probe.heads.{i}.*": rate / highest for i, rate in enumerate(rates)},
            "weight_decay": 0.0,
            "schedule": "one-cycle",
            "warmup": 0.1,
        }

    @classmethod
    def hold(cls, config: ImageClassificationConfig, encoder: ImageEncoder, source: Source) -> SummaryData:
        """The summaries of all images.

        Raises:
            BadData: images that lie in no folder, fewer than two classes, or classes of `val` that `train` has not.
        """
        scenes = {split: split_scenes(source.scenes(), split) for split in ("train", "val")}
        named = {split: [category(scene, source.name) for scene in of] for split, of in scenes.items()}
        classes = tuple(sorted(set(named["train"])))
        unknown = sorted({*named["val"]} - {*classes})
        if len(classes) < 2 or unknown:
            what = f"folders {', '.join(unknown[:3])} are only in val" if unknown else f"{len(classes)} folder"
            raise BadData(
                f"--data {source.name}: a folder for each of two or more classes is needed, in train ({what})"
            )
        train, val = (tuple(_held(config, encoder, scenes[of], named[of], classes)) for of in ("train", "val"))
        if not train or not val:
            raise BadData(f"--data {source.name}: no image of {'val' if train else 'train'} can be read")
        return SummaryData(classes=classes, train=train, val=val)

    def forward(self, batch: Classified, progress: Progress) -> Step:
        """Cross-entropy and the layer's penalty, summed over the layers, which share nothing."""
        outputs = self.probe.each(batch.rows.features)
        entropies = torch.stack([cross_entropy(of, batch.rows.label) for of in outputs])
        weights = torch.stack([cast(nn.Linear, head).weight.square().sum() for head in self.probe.heads])
        penalties = weights.new_tensor(self.config.penalties).repeat(len(self.config.learning_rates))
        losses = {"cross_entropy": entropies.sum(), "penalty": (0.5 * penalties * weights).sum()}
        return Step(losses, {"least_cross_entropy": entropies.detach().min()})

    @torch.no_grad()
    def evaluate(self, batches: Iterable[Classified]) -> dict[str, float]:
        """Percentages of the images: `accuracy` by the linear layer, `knn` by the neighbours among all training images,
        those kept for tuning too, and `macc`, the linear layer's mean over the classes that occur."""
        device, count = self.probe.best.device, len(self.classes)
        data = cast(SummaryData, self.data)
        tune, bank = (data.rows(split).to(device) for split in ("tune", "bank"))
        right = [(of.argmax(1) == tune.label).sum() for of in self.probe.each(tune.features)]
        self.probe.best.fill_(int(torch.stack(right).argmax()))
        rows = Summaries.pack([batch.rows for batch in batches])
        linear = self.probe(rows.features).argmax(1)
        config = self.config
        near = neighbours(rows.features, bank.features, bank.label, count, config.neighbours, config.temperature)
        numbers = {
            "accuracy": multiclass_accuracy(linear, rows.label, count, average="micro"),
            "knn": multiclass_accuracy(near, rows.label, count, average="micro"),
            "macc": multiclass_accuracy(linear, rows.label, count, average="none")[rows.label.unique()].mean(),
        }
        return {name: 100 * float(value) for name, value in numbers.items()}


def neighbours(rows: Tensor, bank: Tensor, label: Tensor, classes: int, count: int, temperature: float) -> Tensor:
    """(N) the class that the nearest rows of a bank give, by cosine, each weighing exp(cosine / temperature) (DINO).

    Args:
        rows: (N C).
        bank: (M C).
        label: (M) int64 of the bank.
        classes: K.
        count: neighbours; all where there are fewer.
        temperature: of the weights.
    """
    bank, found = functional.normalize(bank), []
    for part in functional.normalize(rows).split(1024):
        near, places = (part @ bank.t()).topk(min(count, len(bank)), 1)
        votes = part.new_zeros(len(part), classes)
        found.append(votes.scatter_add_(1, label[places], ((near - 1) / temperature).exp()).argmax(1))
    return torch.cat(found)


def category(scene: Scene, where: str) -> str:
    """Name of the folder that an image lies in, below its split's.

    Raises:
        BadData: it lies in none.
    """
    parts = scene.name.split("/")
    parts = parts[1:] if parts[0] in SPLITS else parts
    if len(parts) < 2 or parts[-2].endswith(".tar"):
        raise BadData(f"--data {where}: {scene.name} lies in no folder that would name its class (CLASS/IMAGE)")
    return parts[-2]


@torch.no_grad()
def _held(
    config: ImageClassificationConfig,
    encoder: ImageEncoder,
    scenes: Sequence[Scene],
    names: Sequence[str],
    classes: Sequence[str],
) -> Iterator[HeldImage]:
    """Every image that can be read; a few at a time go through the encoder."""
    encoder.eval()
    side, device = config.tokens * encoder.patch, device_of(encoder)
    label = {scene.name: classes.index(name) for scene, name in zip(scenes, names, strict=True)}

    def look(scene: Scene) -> Tensor:
        (image,) = scene.images([0])
        return centre_photo(image, (side, side))

    images = readable(scenes, look, f"features of {encoder.name}")
    while some := list(islice(images, config.memory)):
        pixels = torch.stack([image for _, image in some]).to(device)
        summaries = encoder(pixels, (config.tokens, config.tokens)).summary.float().cpu()
        for (scene, _), row in zip(some, summaries, strict=True):
            yield HeldImage(scene.name, Summaries(features=row[None], label=torch.tensor([label[scene.name]])))

"""Semantic segmentation of images: a class for every pixel, from a frozen encoder's tokens."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from splatlearn.data.scene import Scene, Source
from splatlearn.errors import BadData
from splatlearn.losses.segmentation import cross_entropy
from splatlearn.registry import tasks
from splatlearn.tasks.images import ImageTask, ImageTaskConfig, Shot
from splatlearn.tasks.scores import Scores


@dataclass(frozen=True, kw_only=True)
class ImageSegmentationConfig(ImageTaskConfig):
    """Settings of segmentation of images: those of every probe of pixels."""


@tasks.register(
    "image_segmentation", ImageSegmentationConfig, {"small": {}, "tiny": {"tokens": 16, "steps": 300, "rows": 2048}}
)
class ImageSegmentation(ImageTask):
    """Semantic classes of pixels.

    The linear probe is DINOv2's: batch norm and one linear layer on the deepest patch tokens, its outputs enlarged to
    the image. Training takes pixels at random from images without augmentation, so that features are computed once;
    whole images are evaluated, without a sliding window (both our defaults).
    """

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the K classes."""
        return tuple(self.data.source.reader().classes)

    @classmethod
    def outputs_of(cls, config: ImageSegmentationConfig, source: Source) -> int:
        """One a class.

        Raises:
            BadData: the data have no labels.
        """
        if not source.reader().classes:
            raise BadData(
                f"--data {source.name}: no labels of pixels are found; folders with train/ and trainannot/ (CamVid), "
                "images/ and annotations/ (ADE20K), leftImg8bit/ and gtFine/ (Cityscapes) have some, and so have rooms"
            )
        return len(source.reader().classes)

    @classmethod
    def truth(cls, config: Any, scene: Scene, view: int) -> tuple[Tensor, Tensor]:
        """The image and its labels."""
        (image,), (label,) = scene.images([view]), scene.pixel_labels([view])
        if image.shape[1:] != label.shape:
            sizes = [f"{width}x{height}" for height, width in (image.shape[1:], label.shape)]
            raise BadData(f"{scene.name}: the image has {sizes[0]} pixels, and its labels {sizes[1]}")
        return image, label

    def losses(self, batch: Shot) -> Tensor:
        """Cross-entropy over the labelled pixels."""
        return torch.stack([cross_entropy(outputs, batch.truth.values) for outputs in self.outputs(batch)])

    @torch.no_grad()
    def evaluate(self, batches: Iterable[Shot]) -> dict[str, float]:
        """`miou`, `macc` and `accuracy` in percent over all labelled pixels of the images, and `iou/CLASS`. The means
        are over the classes that occur in the labels."""
        self.choose()
        classes = self.classes
        scores = Scores(len(classes), "pixel of the validation images")
        for batch in batches:
            sizes = batch.sizes.values[:, 4:].tolist()
            for maps, truth, (width, height) in zip(self.best(batch), batch.truth.split(), sizes, strict=True):
                logits = functional.interpolate(maps, (height, width), mode="bilinear")[0]
                scores.update(logits.argmax(0).flatten(), truth.values)
        return scores.compute(classes)

"""Depth of images: metres along z for every pixel, from a frozen encoder's tokens. Legend: h w tokens, K bins."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torchmetrics.aggregation import MeanMetric
from torchmetrics.functional.regression import mean_absolute_percentage_error, mean_squared_error

from splatlearn.config import require
from splatlearn.data.scene import Scene, Source
from splatlearn.errors import BadData, MissingData
from splatlearn.losses.depth import gradient_difference, scale_invariant
from splatlearn.ops.reduce import global_mean
from splatlearn.registry import tasks
from splatlearn.tasks.images import ImageTask, ImageTaskConfig, Shot

FLOOR = 0.1
"""Added to every bin's positive part before they are made to add up to one (AdaBins' linear rule, DINOv2's probes)."""
RATIO = 1.25
"""Depths within this factor of the truth count as right."""


@dataclass(frozen=True, kw_only=True)
class ImageDepthConfig(ImageTaskConfig):
    """Settings of depth from images (DINOv2's linear probe on NYUd, where nothing else is said).

    Args:
        summary: the class token is put beside every patch.
        rows: 0: losses are taken on a lattice four times as fine as the grid.
        batch: images a step.
        bins: depths that an output is a mean of, evenly spread from `near` to `far`.
        near, far: metres.
        gradient: weight of the gradients' loss beside the scale-invariant one.
    """

    summary: bool = True
    rows: int = 0
    batch: int = 4
    learning_rates: tuple[float, ...] = (3e-2, 1e-2, 3e-3)
    bins: int = 256
    near: float = 1e-3
    far: float = 10.0
    gradient: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            {
                f"bins: 2 or more are needed, got {self.bins}": self.bins >= 2,
                f"near, far: 0 < near < far is needed, got {self.near} and {self.far}": 0 < self.near < self.far,
                f"gradient: 0 or more is needed, got {self.gradient}": self.gradient >= 0,
                f"rows: depth has losses of neighbours, and so 0 is needed, got {self.rows}": self.rows == 0,
            }
        )


@tasks.register("image_depth", ImageDepthConfig, {"small": {}, "tiny": {"tokens": 16, "steps": 300, "bins": 64}})
class ImageDepth(ImageTask):
    """Depth of pixels.

    Outputs are weights of bins, of which depth is the mean; they are enlarged four times before that, and depth to the
    image's size after. Pixels without depth, and beyond `near` and `far`, count for nothing.
    """

    headline = "delta1"

    @classmethod
    def outputs_of(cls, config: ImageDepthConfig, source: Source) -> int:
        """One a bin."""
        return config.bins

    @classmethod
    def truth(cls, config: Any, scene: Scene, view: int) -> tuple[Tensor, Tensor]:
        """The image and its depth at their native size; 0 where it is unknown or out of bounds."""
        cameras = scene.cameras
        if not len(cameras):
            raise MissingData(f"{scene.name}: no camera, and so no depth of its pixels")
        frames = scene.frames([view], (cameras.width, cameras.height))
        if "depth" not in frames:
            raise MissingData(f"{scene.name}: its frames have no depth")
        depth = frames["depth"][0]
        return frames.images[0], torch.where((depth >= config.near) & (depth <= config.far), depth, 0.0)

    def depths(self, maps: Tensor) -> Tensor:
        """(1 4h 4w) metres of maps of outputs (1 K h w); a decoder's are as fine already."""
        if self.linear:
            maps = functional.interpolate(maps, scale_factor=4, mode="bilinear")
        weights = maps.relu() + FLOOR
        centres = torch.linspace(self.config.near, self.config.far, self.config.bins, device=maps.device)
        return torch.einsum("bkhw,k->bhw", weights / weights.sum(1, keepdim=True), centres)

    def losses(self, batch: Shot) -> Tensor:
        """The scale-invariant loss and that of the gradients, means over the images."""
        true = [part.values.view(1, 4 * h, 4 * w) for part, (w, h) in zip(batch.truth.split(), batch.grids)]
        found = []
        for maps in self.maps(batch):
            pairs = [(self.depths(of), depth) for of, depth in zip(maps, true, strict=True)]
            each = [scale_invariant(*pair) + self.config.gradient * gradient_difference(*pair) for pair in pairs]
            found.append(global_mean(torch.cat(each)))
        return torch.stack(found)

    @torch.no_grad()
    def evaluate(self, batches: Iterable[Shot]) -> dict[str, float]:
        """Means over the images of what holds for their pixels with depth: `rmse` in metres, `rel`, the mean error as a
        share of the true depth, and `delta1`, the percentage within a factor of 1.25.

        Raises:
            BadData: no validation image has depth.
        """
        self.choose()
        means = {name: MeanMetric() for name in ("rmse", "rel", "delta1")}
        for batch in batches:
            sizes = batch.sizes.values[:, 4:].tolist()
            for maps, truth, (width, height) in zip(self.best(batch), batch.truth.split(), sizes, strict=True):
                depth = functional.interpolate(self.depths(maps)[None], (height, width), mode="bilinear").flatten()
                known = truth.values > 0
                if bool(known.any()):
                    found, true = depth[known].clamp(self.config.near, self.config.far), truth.values[known]
                    ratio = torch.maximum(found / true, true / found)
                    means["rmse"].update(mean_squared_error(found, true, squared=False).cpu())
                    means["rel"].update(mean_absolute_percentage_error(found, true).cpu())
                    means["delta1"].update(100 * (ratio < RATIO).float().mean().cpu())
        if not means["rmse"].update_count:
            raise BadData("depth: no validation image has depth between near and far")
        return {name: float(mean.compute()) for name, mean in means.items()}

"""GS3: pre-train an encoder of point clouds by rendering the 3D Gaussians that it predicts from masked RGB-D views.

Sources are cited by section ("GS3 3.4"); what GS3 leaves open follows pixelSplat's released code or is our own
default, said at each field. Legend: B groups of views a batch, V views, N points, C channels, H W pixels.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import inf
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from splatlearn.config import require
from splatlearn.data.augment import rotate_frames
from splatlearn.data.sampling import draw_mask, draw_views, split_scenes
from splatlearn.data.scene import Rejected, Scene, Source, require_known
from splatlearn.encoders.base import PointEncoder, calibrate
from splatlearn.engine import plots
from splatlearn.engine.trainable import Progress, Recipe, Step, require_kind
from splatlearn.errors import ConfigError
from splatlearn.heads.decoder import FeatureDecoder
from splatlearn.heads.epipolar import EpipolarConfig, EpipolarTransformer, view_pairs
from splatlearn.heads.gaussians import DepthConfig, DepthHead, OffsetConfig, OffsetHead
from splatlearn.losses.photometric import LPIPS, mse, psnr
from splatlearn.registry import recipes
from splatlearn.splatting.baselines import BASELINES
from splatlearn.splatting.render import Rendering, RenderOptions, render
from splatlearn.structures import Batch, Frames, Gaussians, Points

INPUTS = ("color", "height")
"""What an encoder can take of the points of a frame."""
GATE = 0.1
"""What the transformer's output is first weighed with beside the encoder's own features, a learned factor a channel
(as LayerScale in CaiT; our default): training starts from features that are not yet mixed with noise."""


@dataclass(frozen=True, kw_only=True)
class GS3Config:
    """Settings of GS3, 3D branch.

    Args:
        views: input views of a sample, 2 or 3 (GS3 3.2; three are its ablation).
        size: width and height in pixels (GS3 4: 320x240).
        gap: raw frames between neighbouring input views (GS3 4: 5).
        in_between: also supervise a view strictly between the inputs (our default; GS3 mentions the inputs only).
        min_overlap: least share of one view seen by the next, else the sample is drawn again (our default).
        mask_ratio: share of the points hidden from the encoder; Gaussians come from visible ones (GS3 3.4: 0.5).
        rotate: turn cloud and cameras together: camera axes within pi/64, up by any angle (GS3 4).
        width: channels of the per-point output for the heads (GS3 4: 128).
        epipolar: sizes of the transformer across views; its `width` and `views` become those of this config.
        cross_view: whether views see each other at all (GS3: yes; off for ablation).
        feature_skip: add the encoder's own full-resolution features after the transformer, which works on a grid four
            times coarser (our default; pixelSplat adds features of the raw image, which leaks colour past the encoder).
        formulation: Gaussians at an `offset` from the point (GS3 eq. 4-5) or at a `depth` bin (eq. 3).
        offset: the offset head.
        depth: the depth head.
        lpips: weight of LPIPS-VGG (GS3 3.5: 0.05); 0 leaves it out and needs no weights.
        lpips_weights: VGG16 weights for it: a file, or empty for the hub cache and then the hub.
        freeze_student: train the heads only, on a frozen encoder: the baseline of reports.
        render: how Gaussians become pixels.
    """

    views: int = 2
    size: tuple[int, int] = (320, 240)
    gap: int = 5
    in_between: bool = True
    min_overlap: float = 0.3
    mask_ratio: float = 0.5
    rotate: bool = True
    width: int = 128
    epipolar: EpipolarConfig = EpipolarConfig()
    cross_view: bool = True
    feature_skip: bool = True
    formulation: Literal["offset", "depth"] = "offset"
    offset: OffsetConfig = OffsetConfig()
    depth: DepthConfig = DepthConfig()
    lpips: float = 0.05
    lpips_weights: str = ""
    freeze_student: bool = False
    render: RenderOptions = RenderOptions()

    def __post_init__(self) -> None:
        misfit = self.epipolar.misfit(*self.size) if self.cross_view else ""
        require(
            {
                f"size: {misfit}": not misfit,
                f"views: 2 or 3 are allowed, got {self.views}": self.views in (2, 3),
                f"size: at least 16x16 pixels are needed, got {self.size[0]}x{self.size[1]}": min(self.size) >= 16,
                f"gap: 1 or more raw frames are needed, got {self.gap}": self.gap >= 1,
                f"min_overlap: a share in [0, 1] is needed, got {self.min_overlap}": 0 <= self.min_overlap <= 1,
                f"mask_ratio: a share in [0, 1) is needed, got {self.mask_ratio}": 0 <= self.mask_ratio < 1,
                f"width: 1 or more is needed, got {self.width}": self.width >= 1,
                f"lpips: zero or more is needed, got {self.lpips}": 0 <= self.lpips < inf,
            }
        )
        object.__setattr__(self, "epipolar", replace(self.epipolar, width=self.width, views=self.views))

    def idle(self) -> dict[str, str]:
        """Settings that have no effect beside the others, each with the reason."""
        used, unused = ("offset", "depth") if self.formulation == "offset" else ("depth", "offset")
        reasons = {unused: f"formulation is {self.formulation}"}
        if getattr(self, used).sh_degree == 0:
            reasons[f"{used}.rotate_sh"] = "sh_degree is 0"
        if used == "depth" and self.depth.opacity == "normalized":
            reasons["depth.opacity_exponent"] = "opacity is normalized"
        if not self.cross_view:
            reasons |= dict.fromkeys(("epipolar", "feature_skip"), "cross_view is off")
        if not self.lpips:
            reasons["lpips_weights"] = "lpips is 0"
        return reasons


@dataclass(frozen=True, kw_only=True, eq=False)
class Views(Batch):
    """Input views, and the views to render.

    Args:
        frames: inputs with `depth`, `visible` (V H W) bool and `order` (V) int64, a random permutation in each item.
        targets: the inputs again, then the view in between where there is one; attribute `novel` (V) bool.
    """

    frames: Frames
    targets: Frames


@dataclass(frozen=True, kw_only=True)
class GS3Data:
    """Pairs and triples of nearby frames.

    Args:
        source: where the recordings are.
        config: the recipe's settings.
        augment: whether to rotate the world.
        height: whether the encoder takes the height of a point.
    """

    source: Source
    config: GS3Config
    augment: bool
    height: bool = False

    def scenes(self, split: str) -> Mapping[str, Sequence[Scene]]:
        """Recordings of `train` or `val`; of fewer than five, the last fifth of each. Up and unit must be known."""
        scenes = self.source.scenes()
        require_known(scenes, "metric", "gs3 places Gaussians in metres")
        if self.config.rotate:
            require_known(scenes, "up", "gs3 turns scenes about the vertical (--recipe.rotate false: it does not)")
        if self.height:
            require_known(scenes, "up", "the encoder takes the height (--encoder.inputs without it: it does not)")
        return {"all": split_scenes(scenes, split)}

    def shares(self) -> Mapping[str, float]:
        """By size."""
        return {}

    def sample(self, scene: Scene, rng: np.random.Generator) -> Views:
        """One group of views, its mask and its rotation."""
        config = self.config
        drawn = draw_views(
            scene,
            views=config.views,
            gap=config.gap,
            size=config.size,
            rng=rng,
            in_between=config.in_between,
            min_overlap=config.min_overlap,
        )
        targets = rotate_frames(drawn.frames, rng) if self.augment and config.rotate else drawn.frames
        inputs = targets.rows(torch.arange(config.views))
        visible = draw_mask(inputs["depth"] > 0, config.mask_ratio, rng)
        if not visible.flatten(1).any(1).all():
            raise Rejected("no visible point", f"{drawn.name}: in some view, with mask_ratio {config.mask_ratio:g}")
        return Views(
            names=(drawn.name,),
            frames=inputs.with_attributes(
                visible=visible,
                order=torch.from_numpy(rng.permutation(config.views)),
            ),
            targets=targets.with_attributes(novel=torch.arange(len(targets)) >= config.views),
        )


@recipes.register("gs3", GS3Config, presets={"small": {}, "tiny": {}, "paper": {}})
class GS3(Recipe[Views]):
    """Render masked RGB-D pairs through predicted 3D Gaussians (GS3, 3D branch).

    Args:
        config: settings.
        student: the point encoder to pre-train.
        source: where the recordings are.
    """

    student: PointEncoder

    def __init__(self, config: GS3Config, *, student: PointEncoder, source: Source) -> None:
        super().__init__()
        require_kind(student, PointEncoder, "gs3", "points, sparse_unet for instance")
        self.config = config
        if missing := [name for name in student.config.inputs if name not in INPUTS]:
            raise ConfigError(
                f"--encoder.inputs: gs3 gives points {' and '.join(INPUTS)}, the encoder takes {', '.join(missing)} too"
            )
        height = "height" in student.config.inputs
        self.data = GS3Data(source=source, config=config, augment=True, height=height)
        self.validation = GS3Data(source=source, config=config, augment=False, height=height)
        self.student = student.requires_grad_(not config.freeze_student)
        self.decoder = FeatureDecoder(student.channels[0], config.width)
        self.epipolar = EpipolarTransformer(config.epipolar) if config.cross_view else None
        skip = config.cross_view and config.feature_skip
        self.gate = torch.nn.Parameter(torch.full((config.width,), GATE)) if skip else 1.0
        self.head = (
            OffsetHead(config.offset, config.width)
            if config.formulation == "offset"
            else DepthHead(config.depth, config.width)
        )
        self.perceptual = LPIPS(config.lpips_weights) if config.lpips > 0 else None

    def train(self, mode: bool = True) -> "GS3":
        """As usual, but a frozen student stays in evaluation mode, with the statistics of `setup`."""
        super().train(mode)
        if self.config.freeze_student:
            self.student.eval()
        return self

    def setup(self, batches: Iterable[Views]) -> None:
        """A frozen student's batch-norm statistics are set first: the baseline is not to be weakened."""
        if self.config.freeze_student:
            calibrate(self.student, (batch.frames.to_points() for batch in batches))

    def encode(self, points: Points) -> Tensor:
        """(N C) features of visible points; every view is a cloud of its own (GS3 3.2)."""
        return self.student(points).dense()

    def gaussians(self, frames: Frames, points: Points, features: Tensor) -> Gaussians:
        """Gaussians of each group of views from the encoder's features of its visible points."""
        decoded = self.decoder(features)
        if self.epipolar is not None:
            width, height = frames.cameras.width, frames.cameras.height
            grid = self.decoder.to_grid(decoded, points, width, height)
            seen = self.epipolar(grid, frames.cameras, order=frames["order"], rows=points)
            decoded = decoded + self.gate * seen if self.config.feature_skip else seen
        return self.head(decoded, points, frames.cameras).join(frames.counts)

    def render(self, batch: Views, shuffle: bool = False) -> tuple[Rendering, Gaussians]:
        """Renders every target view.

        Args:
            batch: inputs and targets.
            shuffle: give each point the encoder's features of another point, to see what they are worth.
        """
        points = batch.frames.to_points()
        features = self.encode(points)
        if shuffle:
            generator = torch.Generator(features.device).manual_seed(0)
            features = features[torch.randperm(len(features), generator=generator, device=features.device)]
        gaussians = self.gaussians(batch.frames, points, features)
        return render(gaussians, batch.targets.cameras, options=self.config.render), gaussians

    def forward(self, batch: Views, progress: Progress) -> Step:
        """MSE over all pixels of the targets, and LPIPS (GS3 3.5)."""
        rendering, gaussians = self.render(batch)
        losses = {"mse": mse(rendering.color, batch.targets.images)}
        if self.perceptual is not None:
            losses["lpips"] = self.config.lpips * self.perceptual(rendering.color, batch.targets.images)
        metrics = {
            "psnr": psnr(rendering.color.detach(), batch.targets.images).mean(),
            "alpha": rendering.alpha.detach().mean(),
            "gaussians": torch.tensor(len(gaussians) / len(batch.frames.counts)),
        }
        return Step(losses, metrics)

    @torch.no_grad()
    def evaluate(self, batches: Iterable[Views]) -> dict[str, float]:
        """PSNR in dB, averaged over views: of the inputs (`val_psnr`) and of the view in between
        (`val_psnr_novel`), of the baselines on the same views, and with the encoder's features shuffled."""
        scores: dict[str, list[Tensor]] = defaultdict(list)
        for batch in batches:
            targets = batch.targets
            pictures = {name: make(batch.frames, targets) for name, make in BASELINES.items()}
            pictures["val_psnr"] = self.render(batch)[0].color
            pictures["val_psnr_shuffled"] = self.render(batch, shuffle=True)[0].color
            for name, picture in pictures.items():
                key = name if name.startswith("val") else f"baseline/{name}"
                values, novel = psnr(picture.clamp(0, 1), targets.images), targets["novel"]
                scores[key].append(values[~novel])
                scores[f"{key}_novel"].append(values[novel])
        means = {key: torch.cat(values) for key, values in scores.items()}
        return {key: float(values.mean()) for key, values in means.items() if len(values)}

    @torch.no_grad()
    def preview(self, batch: Views) -> dict[str, Tensor]:
        """Pictures of the first group: inputs, masks, photographs, renders, errors, depth, features, lines."""
        first = Views(names=batch.names[:1], frames=batch.frames.slice(0), targets=batch.targets.slice(0))
        points = first.frames.to_points()
        features = self.encode(points)
        rendering, _ = self.render(first)
        size = first.frames.cameras.width, first.frames.cameras.height
        pictures: dict[str, Tensor] = {}
        for view, image in enumerate(first.frames.images):
            pictures[f"inputs/view {view + 1}"] = image
            pictures[f"inputs/what the encoder sees of view {view + 1}"] = image * first.frames["visible"][view]
        colors = plots.pca_colors(features.float())
        for view, part in enumerate(points.with_attributes(feature=colors).split()):
            canvas = torch.ones(size[0] * size[1], 3)
            canvas[part["pixel"].cpu()] = part["feature"].cpu()
            pictures[f"features/view {view + 1}, PCA"] = canvas.view(size[1], size[0], 3).permute(2, 0, 1)
        for view, target in enumerate(first.targets.images):
            group = "view in between" if first.targets["novel"][view] else f"view {view + 1}"
            color = rendering.color[view].clamp(0, 1)
            pictures[f"{group}/photograph"] = target
            pictures[f"{group}/render"] = color
            pictures[f"{group}/error"] = plots.error_map(color, target)
            pictures[f"{group}/rendered depth"] = plots.depth_colors(rendering.depth[view, 0])
        for name, make in BASELINES.items():
            pictures[f"baselines/{name.replace('_', ' ')}"] = make(first.frames, first.targets)[-1].clamp(0, 1)
        return pictures | plots.epipolar_pictures(first.frames, view_pairs(first.frames.counts))

    def describe(self) -> dict[str, Any]:
        """Gaussians of a sample when every pixel has depth, and whose weights the loss is made with."""
        per_point = (self.config.offset if self.config.formulation == "offset" else self.config.depth).per_point
        pixels = self.config.size[0] * self.config.size[1] * self.config.views
        facts: dict[str, Any] = {"gaussians_per_sample": round(pixels * (1 - self.config.mask_ratio)) * per_point}
        return facts if self.perceptual is None else {**facts, "teachers": {"lpips": self.perceptual.origin}}

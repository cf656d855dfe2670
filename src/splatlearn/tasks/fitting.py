"""A 3D Gaussian scene from posed frames: what `fit` trains.

One scene is one `Trainable`: a step renders views and compares them with the photographs, then the Markov chain of
`splatting/optimize.py` moves Gaussians. Losses and rates follow 3DGS (Kerbl et al. 2023, graphdeco code) and 3DGS-MCMC
(Kheradmand et al. 2024) where a comment does not say otherwise.

Legend: V views, H W pixels. Metres, world.
"""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, replace
from math import inf
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.optim import Optimizer

from splatlearn.config import require
from splatlearn.data.scene import Scene
from splatlearn.engine import plots
from splatlearn.engine.trainable import Progress, Step, Trainable
from splatlearn.losses.photometric import psnr, ssim
from splatlearn.ops.reduce import global_mean
from splatlearn.splatting.optimize import ChainOptions, Splats
from splatlearn.splatting.render import Rendering, RenderOptions, render
from splatlearn.structures import Frames, Gaussians
from splatlearn.tasks.fit_corrections import Corrections, exposed, moved
from splatlearn.tasks.fit_start import Way, start
from splatlearn.tasks.fit_views import FitData, Photographs, Shots, parse_holdout

PICTURES = 4
"""Views that the report shows."""

TRAINING: dict[str, Any] = {
    "steps": 4500,
    "batch": 1,
    "optimizer": "adam",
    "fused": True,
    "epsilon": 1e-15,
    "weight_decay": 0.0,
    "schedule": "cosine",
    "learning_rate": 5e-3,
    "min_learning_rate": 5e-4,
    "rates": {
        "splats.places": 0.3,
        "splats.log_scales": 5.0,
        "splats.quaternions": 1.0,
        "splats.logits": 50.0,
        "splats.base": 2.5,
        "splats.rest": 0.125,
        "poses.values": 0.1,
        "exposures.values": 1.0,
    },
    "decays": {"splats.places": 0.1, "poses.values": 0.1},
    "setup_batches": 0,
    "checkpoint_every": 500,
}
"""Options of the loop. The rates are about five times those of 3DGS, and fall, as a fit on a CPU has a sixth of its
steps: with those of 3DGS the kitchen recording, at 80x60 in 1000 steps, ended 2 dB lower."""


@dataclass(frozen=True, kw_only=True)
class FitConfig:
    """How a scene is fitted.

    Args:
        side: the longer side of the images in pixels; they keep their proportions and are never enlarged.
        gaussians: at most so many.
        init: where the first Gaussians come from: `depth`, `points` (the scene's cloud, of COLMAP say), `random`, or
            `auto`: the first of these that the scene has.
        random: Gaussians of a random start at most; the chain adds the others where they are needed. With 150,000
            at once each view explains itself by those before it (docs/benchmarks.md; our default).
        degree: of the spherical harmonics, 0 to 4 (3DGS: 3).
        degree_every: steps until the colours may use the next degree (3DGS: 1000 of 30,000).
        holdout: views that are measured and not fitted to: `every:N`, the first of every N; `block:N`, N in a row in
            the middle; `none`; `auto`, the split that the source states (its `test`, or else its `val`), and `every:8`
            where it states none.
        ssim: weight of 1 - SSIM; the mean absolute error has the rest (3DGS: 0.2).
        depth: weight of the relative error of the rendered depth, where depth was measured (our default).
        opacity: weight of the mean opacity, which keeps Gaussians from hiding behind others (3DGS-MCMC: 0.01).
        scale: weight of the mean scale over the distance of what is seen, which lets Gaussians vanish (3DGS-MCMC:
            0.01, in units of the scene).
        refine_poses: also learn a small motion of each camera.
        exposure: also learn a gain and an offset of each colour in each view.
        chain: relocation, growth and noise.
        render: how Gaussians become pixels; depth is always compared `normalized`.
        room: megabytes of decoded images kept in memory.
    """

    side: int = 320
    gaussians: int = 150_000
    init: Way = "auto"
    random: int = 20_000
    degree: int = 2
    degree_every: int = 500
    holdout: str = "auto"
    ssim: float = 0.2
    depth: float = 0.1
    opacity: float = 0.01
    scale: float = 0.01
    refine_poses: bool = False
    exposure: bool = False
    chain: ChainOptions = ChainOptions()
    render: RenderOptions = RenderOptions(depth="normalized")
    room: float = 4096.0

    def __post_init__(self) -> None:
        parse_holdout(self.holdout)
        require(
            {
                f"side: 16 pixels or more are needed, got {self.side}": self.side >= 16,
                f"gaussians: 2 or more are needed, got {self.gaussians}": self.gaussians >= 2,
                f"random: 2 or more are needed, got {self.random}": self.random >= 2,
                f"degree: 0 to 4 is needed, got {self.degree}": 0 <= self.degree <= 4,
                f"degree_every: 1 or more is needed, got {self.degree_every}": self.degree_every >= 1,
                f"ssim: a weight in [0, 1] is needed, got {self.ssim}": 0 <= self.ssim <= 1,
                f"depth: zero or more is needed, got {self.depth}": 0 <= self.depth < inf,
                f"opacity: zero or more is needed, got {self.opacity}": 0 <= self.opacity < inf,
                f"scale: zero or more is needed, got {self.scale}": 0 <= self.scale < inf,
                f"room: zero or more is needed, got {self.room}": 0 <= self.room < inf,
            }
        )

    def idle(self) -> dict[str, str]:
        """Settings that have no effect beside the others, and why."""
        reasons = {"render.depth": "the depth of a fit is always normalized"}
        if self.degree == 0:
            reasons["degree_every"] = "there is no degree above --fit.degree 0"
        if self.init in ("depth", "points"):
            reasons["random"] = f"the start is of {self.init}"
        return reasons


class SceneFit(Trainable[Shots]):
    """The Gaussians of one scene, and what is learnt of its views.

    Args:
        config: settings.
        scene: with posed frames.
        seed: draws the first Gaussians.

    Raises:
        UserError: the scene cannot be fitted so.
    """

    def __init__(self, config: FitConfig, scene: Scene, seed: int) -> None:
        super().__init__()
        self.config = config
        self.views = FitData(photographs=Photographs(scene, config.side, config.room), holdout=config.holdout)
        self.data = self.validation = self.views
        rng = np.random.default_rng(seed)
        begun = start(self.views, config.init, config.gaussians, rng, at_random=config.random)
        self.way = begun.way
        self.splats = Splats(begun.gaussians, cap=config.gaussians, degree=config.degree, unit=begun.unit)
        frames, trained = self.views.photographs.cameras["frame"], self.views.trained
        self.poses = Corrections(frames, trained, 6, config.refine_poses)
        self.exposures = Corrections(frames, trained, 6, config.exposure)

    def gaussians(self) -> Gaussians:
        """The scene, without what has become invisible."""
        found = self.splats.gaussians().detach()
        return found.rows(found.opacities > self.config.chain.dead)

    def render(self, frames: Frames, degree: int | None = None) -> Rendering:
        """The scene from the corrected cameras of some views, as these were exposed; depth over alpha.

        Args:
            frames: one item, attribute `view`.
            degree: of the colours; by default all that there is.
        """
        views, cameras = frames["view"], frames.cameras
        if self.poses.active:
            cameras = moved(cameras, self.poses(views), self.splats.unit)
        options = replace(self.config.render, depth="normalized")
        seen = render(self.splats.gaussians(degree), cameras, options=options)
        color = exposed(seen.color, self.exposures(views)) if self.exposures.active else seen.color
        return seen._replace(color=color)

    def forward(self, batch: Shots, progress: Progress) -> Step:
        """Photometric error, error of depth, and what keeps opacities and scales small."""
        config, frames = self.config, batch.frames.regroup((len(batch.frames),))
        seen = self.render(frames, min(config.degree, progress.step // config.degree_every))
        losses = {"l1": (1 - config.ssim) * global_mean((seen.color - frames.images).abs())}
        if config.ssim:
            losses["ssim"] = config.ssim * (1 - ssim(seen.color, frames.images))
        if config.depth and "depth" in frames:
            known = (frames["depth"] > 0) & (seen.alpha[:, 0].detach() > 0.5)
            error = (seen.depth[:, 0] - frames["depth"]).abs() / frames["depth"].clamp_min(1e-6)
            losses["depth"] = config.depth * global_mean(error, known.float())
        if config.opacity:
            losses["opacity"] = config.opacity * self.splats.opacities.mean()
        if config.scale:
            losses["scale"] = config.scale * self.splats.scales.mean() / self.splats.unit
        metrics = {
            "psnr": psnr(seen.color.detach().clamp(0, 1), frames.images).mean(),
            "gaussians": self.splats.count.float(),
        }
        return Step(losses, metrics)

    def after_step(self, optimizer: Optimizer, progress: Progress) -> None:
        """Relocation now and then, and noise; the noise is scaled by the rate of the places."""
        chain = self.config.chain
        if chain.due(progress.step, progress.steps):
            self.splats.relocate(optimizer, chain)
        rates = (
            group["lr"] for group in optimizer.param_groups if any(p is self.splats.places for p in group["params"])
        )
        self.splats.shake(next(rates, 0.0), chain)

    @torch.no_grad()
    def evaluate(self, batches: Iterable[Shots]) -> dict[str, float]:
        """Means over the held-out views: PSNR in dB, SSIM, absolute error of depth in metres; PSNR of the nearest
        training frame and of the mean colour. Where no view is held out, those of views that were fitted to."""
        from torchmetrics.functional.image import structural_similarity_index_measure as structural_similarity

        scores: dict[str, list[float]] = defaultdict(list)
        mean = self._mean_color()
        for batch in batches:
            frames = batch.frames.regroup((len(batch.frames),))
            seen = self.render(frames)
            color = seen.color.clamp(0, 1)
            scores["psnr"] += psnr(color, frames.images).tolist()
            for own, photograph in zip(color, frames.images):
                similar = structural_similarity(own[None], photograph[None], data_range=1.0)
                scores["ssim"].append(float(similar))  # pyright: ignore[reportArgumentType]
            if "depth" in frames:
                known = frames["depth"] > 0
                errors = (seen.depth[:, 0] - frames["depth"]).abs()
                scores["depth_error"] += [float(e[k].mean()) for e, k in zip(errors, known) if bool(k.any())]
            for view, photograph in zip(frames["view"].tolist(), frames.images):
                scores["mean_colour"].append(_psnr(mean.expand_as(photograph), photograph))
                scores["copy_nearest"].append(_psnr(self._nearest(view).to(photograph), photograph))
        means = {name: float(np.mean(values)) for name, values in scores.items() if values}
        baselines = {f"baseline/{name}": means.pop(name) for name in ("copy_nearest", "mean_colour") if name in means}
        if self.config.holdout == "none":
            return {f"train_{name}": value for name, value in means.items()}
        return {f"val_{name}": value for name, value in means.items()} | baselines

    @torch.no_grad()
    def preview(self, batch: Shots) -> dict[str, Tensor]:
        """Photographs, renders, errors and depth of some held-out views, spread over the recording."""
        views = self.views.validated
        chosen = [views[i] for i in np.unique(np.linspace(0, len(views) - 1, PICTURES).round().astype(int))]
        kind = "frame fitted to" if self.config.holdout == "none" else "held-out frame"
        pictures: dict[str, Tensor] = {}
        for view, frames in self.views.photographs.try_all(chosen).items():
            seen = self.render(frames.to(self.splats.places.device))
            color, group = seen.color[0].clamp(0, 1).cpu(), f"{kind} {int(frames.cameras['frame'][0])}"
            pictures[f"{group}/photograph"] = frames.images[0]
            pictures[f"{group}/render, {_psnr(color, frames.images[0]):.1f} dB"] = color
            pictures[f"{group}/error"] = plots.error_map(color, frames.images[0])
            shown = torch.where(seen.alpha[0, 0] > 0.5, seen.depth[0, 0], 0.0)
            pictures[f"{group}/rendered depth"] = plots.depth_colors(shown)
            if "depth" in frames:
                pictures[f"{group}/measured depth"] = plots.depth_colors(frames["depth"][0])
            if self.config.holdout != "none":
                nearest = self._nearest(view)
                pictures[f"{group}/nearest training frame, {_psnr(nearest, frames.images[0]):.1f} dB"] = nearest
        return pictures

    def describe(self) -> dict[str, Any]:
        """How many Gaussians, without what has become invisible, and views, and where the Gaussians began."""
        return {
            "gaussians_per_sample": len(self.gaussians()),
            "init": self.way,
            "views": {
                "train": len(self.views.trained),
                "held_out": len(self.views.held_out),
            },
            "size": list(self.views.photographs.size),
        }

    def _mean_color(self) -> Tensor:
        """(3 1 1) of the training frames."""
        means = [frame.images.mean((0, 2, 3)) for frame in self.views.photographs.try_all(self.views.trained).values()]
        return torch.stack(means).mean(0)[:, None, None].to(self.splats.places.device)

    def _nearest(self, view: int) -> Tensor:
        """(3 H W), the photograph of the nearest training camera whose frame can be decoded."""
        return self.views.photographs.first(self.views.nearest(view, float(self.splats.unit))).images[0]


def _psnr(picture: Tensor, target: Tensor) -> float:
    return float(psnr(picture[None], target[None]))

"""A scene's Gaussians as parameters to optimise, and the Markov chain that moves them to where they are needed.

The rules are those of "3D Gaussian Splatting as Markov Chain Monte Carlo" (Kheradmand et al., NeurIPS 2024,
arXiv:2404.09591), below MCMC: nothing is cut out or split by thresholds on gradients; Gaussians that hardly show are
put where others are, in a way that leaves the picture as it was, and those that hardly show wander.

Legend: N rows of the parameters, K = (degree + 1)^2 spherical-harmonics coefficients, M chosen rows. Metres, world.
"""

from dataclasses import dataclass
from math import inf

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from splatlearn.config import require
from splatlearn.errors import UserError
from splatlearn.ops.neighbors import knn
from splatlearn.splatting.projection import rotations
from splatlearn.structures import SH_C0, Gaussians, Points

MOST_COPIES = 51
"""Of one Gaussian at a time (MCMC code)."""
SHARPNESS = 100.0
"""How suddenly noise ends above the opacity at which a Gaussian counts as dead (MCMC, section 3.3: k)."""
STILL = 0.145
"""So far above the opacity at which a Gaussian counts as dead the noise is below 1e-6 of its size, and left out."""
SOLID = 1 - 1e-6
"""Greatest opacity that is shared: near 1 the terms of the sum are so large that their difference is lost."""


@dataclass(frozen=True, kw_only=True)
class ChainOptions:
    """How Gaussians are relocated, added and shaken.

    Args:
        every: steps between relocations (MCMC: 100).
        start: share of the run before the first (MCMC: 500 of 30,000 steps).
        stop: share of the run after which none is relocated (MCMC: 25,000 of 30,000 steps).
        dead: opacity at and below which a Gaussian is dead (MCMC: 0.005).
        growth: share of the Gaussians that each relocation adds, one at least unless it is 0, until the cap is reached
            (MCMC: 0.05).
        noise: the noise of a step in covariances of the Gaussian, at a learning rate of 1 of the places (MCMC:
            5e5); 0 is none.
    """

    every: int = 100
    start: float = 0.02
    stop: float = 0.83
    dead: float = 0.005
    growth: float = 0.05
    noise: float = 5e5

    def __post_init__(self) -> None:
        require(
            {
                f"every: 1 or more is needed, got {self.every}": self.every >= 1,
                f"start and stop: shares of the run, 0 <= start <= stop <= 1, are needed, got {self.start} and "
                f"{self.stop}": 0 <= self.start <= self.stop <= 1,
                f"dead: an opacity in (0, 0.1] is needed, got {self.dead}": 0 < self.dead <= 0.1,
                f"growth: zero or more is needed, got {self.growth}": 0 <= self.growth < inf,
                f"noise: zero or more is needed, got {self.noise}": 0 <= self.noise < inf,
            }
        )

    def due(self, step: int, steps: int) -> bool:
        """Whether Gaussians are relocated after this step, the first being 0."""
        return (step + 1) % self.every == 0 and self.start <= (step + 1) / steps <= self.stop


class Splats(nn.Module):
    """Gaussians before activation, in as many rows as there may ever be; the first `count` are in use.

    So every tensor keeps its shape, and a checkpoint needs nothing but the tensors.

    Args:
        start: one item, at most `cap` Gaussians, of a degree up to `degree`; further coefficients start at zero.
        cap: N.
        degree: of the spherical harmonics.
        unit: metres to a unit of `places`, so that learning rates do not depend on the scene's size.

    Attributes:
        places: (N 3) means, from `center` in `unit`.
        log_scales: (N 3) natural logarithms of standard deviations in metres.
        quaternions: (N 4) w x y z, of any length.
        logits: (N) of the opacities.
        base: (N 1 3) first coefficient of the colour.
        rest: (N K-1 3) further coefficients.
        count: int64 scalar, rows in use.
        center: (3) metres, world.
        unit: scalar, metres.
    """

    places: nn.Parameter
    log_scales: nn.Parameter
    quaternions: nn.Parameter
    logits: nn.Parameter
    base: nn.Parameter
    rest: nn.Parameter
    count: Tensor
    center: Tensor
    unit: Tensor

    def __init__(self, start: Gaussians, *, cap: int, degree: int, unit: float) -> None:
        super().__init__()
        if not 0 < len(start) <= cap:
            raise UserError(f"a fit starts from 1 to {cap} Gaussians, the cap; got {len(start)}")
        coefficients, center = (degree + 1) ** 2, start.means.double().mean(0).float()
        sh = start.sh[:, :coefficients]
        sh = torch.cat([sh, sh.new_zeros(len(sh), coefficients - sh.shape[1], 3)], 1)
        values = {
            "places": (start.means - center) / unit,
            "log_scales": start.scales.log(),
            "quaternions": start.quaternions,
            "logits": torch.logit(start.opacities, 1e-6),
            "base": sh[:, :1],
            "rest": sh[:, 1:],
        }
        for name, value in values.items():
            rows = value.new_zeros(cap, *value.shape[1:])
            rows[: len(value)] = value
            self.register_parameter(name, nn.Parameter(rows))
        self.register_buffer("count", torch.tensor(len(start)))
        self.register_buffer("center", center)
        self.register_buffer("unit", torch.tensor(float(unit)))

    def __len__(self) -> int:
        """Rows in use."""
        return int(self.count)

    @property
    def opacities(self) -> Tensor:
        """(count) in [0, 1]."""
        return self._used("logits").sigmoid()

    @property
    def scales(self) -> Tensor:
        """(count 3) metres."""
        return self._used("log_scales").exp()

    def gaussians(self, degree: int | None = None) -> Gaussians:
        """The rows in use, activated, one item; gradients reach the parameters.

        Args:
            degree: of the colours, at most the degree that there is room for, which is the default.
        """
        rest = self._used("rest")
        kept = rest.shape[1] if degree is None else (degree + 1) ** 2 - 1
        base = self._used("base")
        return Gaussians(
            means=self.center + self.unit * self._used("places"),
            scales=self.scales,
            quaternions=self._used("quaternions"),
            opacities=self.opacities,
            sh=torch.cat([base, rest[:, :kept]], 1) if kept else base,
        )

    @torch.no_grad()
    def relocate(self, optimizer: Optimizer, options: ChainOptions) -> int:
        """Puts dead Gaussians where living ones are, and adds some up to the cap (MCMC, section 3.4).

        A living one is chosen in proportion to its opacity. It and its copies become fainter and smaller such that
        together they look as it did (`shared`), and the optimiser forgets what it knew of them.

        Args:
            optimizer: one whose state is row-aligned tensors (Adam's); it steps these parameters.
            options: which are dead, and how many are added.

        Returns:
            Gaussians that were moved or added.
        """
        used, opacities = len(self), self.opacities
        dead = (opacities <= options.dead).nonzero().squeeze(1)
        more = max(int(used * (1 + options.growth)), used + (options.growth > 0))
        target = min(len(self.logits), more)
        added = torch.arange(used, max(target, used), device=opacities.device)
        chances = opacities.clone()
        chances[dead] = 0
        goals = torch.cat([dead, added])
        if not len(goals) or not bool(chances.any()):
            return 0
        sources = torch.multinomial(chances, len(goals), replacement=True)
        self._share(sources, options.dead)
        for parameter in self.parameters():
            parameter[goals] = parameter[sources]
        self.count.fill_(used + len(added))
        self._forget(optimizer, torch.cat([sources, goals]))
        return len(goals)

    @torch.no_grad()
    def shake(self, rate: float, options: ChainOptions) -> None:
        """Noise on the places of the Gaussians that hardly show, along their own axes (MCMC, eq. 8).

        Args:
            rate: learning rate of `places` in this step.
            options: strength, and the opacity about which it fades.
        """
        opacities = self.opacities
        rows = (opacities < options.dead + STILL).nonzero().squeeze(1)
        if not len(rows) or not rate * options.noise:
            return
        axes = rotations(self.quaternions[rows]) * (self.log_scales[rows].exp() / self.unit)[:, None]
        strength = torch.sigmoid(-SHARPNESS * (opacities[rows] - options.dead)) * rate * options.noise
        wished = torch.randn(len(rows), 3, 1, device=rows.device)
        self.places[rows] += strength[:, None] * (axes @ (axes.transpose(1, 2) @ wished)).squeeze(2)

    def _used(self, name: str) -> Tensor:
        rows, count = getattr(self, name), len(self)
        return rows if count == len(rows) else rows[:count]

    def _share(self, sources: Tensor, dead: float) -> None:
        """Makes the sources what each of them and its copies are to be."""
        chosen, copies = sources.unique(return_counts=True)
        before = self.logits[chosen].sigmoid()
        opacities, shrinking = shared(before, copies + 1)
        self.logits[chosen] = torch.logit(opacities.clamp(dead, SOLID))
        self.log_scales[chosen] += shrinking.log()[:, None]

    def _forget(self, optimizer: Optimizer, rows: Tensor) -> None:
        for parameter in self.parameters():
            for value in optimizer.state.get(parameter, {}).values():
                if isinstance(value, Tensor) and value.shape == parameter.shape:
                    value[rows] = 0


def shared(opacities: Tensor, copies: Tensor) -> tuple[Tensor, Tensor]:
    """What N equal Gaussians must be to look as one does (MCMC, eq. 9).

    The inner sums of the paper's formula are binomial coefficients of one order more (the "hockey stick").

    Args:
        opacities: (M) of the one; above `SOLID` they count as it.
        copies: (M) int64, N, itself among them; more than 51 count as 51.

    Returns:
        (M) opacity of each, and (M) the factor of its scales.
    """
    before, number = opacities.double().clamp(max=SOLID), copies.clamp(1, MOST_COPIES).double()
    after = 1 - (1 - before) ** (1 / number)
    order = torch.arange(1, MOST_COPIES + 1, device=opacities.device, dtype=torch.float64)
    top = number[:, None]
    log_binomials = torch.lgamma(top + 1) - torch.lgamma(order + 1) - torch.lgamma((top - order + 1).clamp_min(1))
    terms = (log_binomials + order * after.clamp_min(1e-300).log()[:, None]).exp() / order.sqrt()
    signs = 1 - 2 * ((order - 1) % 2)
    seen = torch.where(order <= top, signs * terms, 0.0).sum(1)
    return after.to(opacities.dtype), (before / seen).to(opacities.dtype)


def from_points(points: Points, *, opacity: float) -> Gaussians:
    """Round Gaussians at points, as wide as their three nearest neighbours are far in the root mean square (3DGS), and
    at least a millionth of the extent.

    Args:
        points: one item, two points or more, with `color`; `opacity` (N 1), where there, wins over the argument.
        opacity: of all.

    Raises:
        UserError: fewer than two points.
        MissingAttribute: the points have no colour.
    """
    if len(points) < 2:
        raise UserError(f"Gaussians start from two points or more, got {len(points)}")
    xyz = points.xyz
    distances, _ = knn(xyz, (len(xyz),), xyz, (len(xyz),), 4)
    near = distances[:, 1:]
    near = torch.where(near.isfinite(), near, near[:, :1])  # fewer than four points
    least = float((xyz.amax(0) - xyz.amin(0)).norm()) * 1e-6 + 1e-9
    widths = near.square().mean(1).sqrt().clamp_min(least)
    given = points["opacity"].squeeze(1) if "opacity" in points else torch.full_like(widths, opacity)
    return Gaussians(
        means=xyz,
        scales=widths[:, None].expand(-1, 3),
        quaternions=xyz.new_tensor([1.0, 0, 0, 0]).repeat(len(xyz), 1),
        opacities=given,
        sh=((points["color"] - 0.5) / SH_C0)[:, None],
    )

"""What a fit may learn of each view beside the scene: a small motion of its camera, and its exposure.

Legend: V views of the scene, B views of a batch, C numbers a view, H W pixels. Metres, world.
"""

from dataclasses import replace

import torch
from torch import Tensor, nn

from splatlearn.structures import Cameras


class Corrections(nn.Module):
    """Numbers of every view, zero at first.

    A view that is not trained gets those of its neighbours in time, interpolated: what is held out stays unseen, and
    yet follows a drift that its neighbours share.

    Args:
        frames: (V) raw frame numbers.
        trained: views that are fitted to, one or more.
        channels: C.
        active: whether they are learnt; else they stay zero.
    """

    lower: Tensor
    upper: Tensor
    weight: Tensor

    def __init__(self, frames: Tensor, trained: list[int], channels: int, active: bool) -> None:
        super().__init__()
        self.values = nn.Parameter(torch.zeros(len(frames), channels), requires_grad=active)
        order = torch.tensor(sorted(trained, key=lambda view: (int(frames[view]), view)))
        times = frames[order].double()
        after = torch.searchsorted(times, frames.double()).clamp(max=len(order) - 1)
        before = torch.where((times[after] > frames) & (after > 0), after - 1, after)
        gap = (times[after] - times[before]).clamp_min(1e-12)
        weight = ((frames - times[before]) / gap).clamp(0, 1).float()
        own = torch.zeros(len(frames), dtype=torch.bool)
        own[order] = True
        every = torch.arange(len(frames))
        self.register_buffer("lower", torch.where(own, every, order[before]), persistent=False)
        self.register_buffer("upper", torch.where(own, every, order[after]), persistent=False)
        self.register_buffer("weight", torch.where(own, 0.0, weight), persistent=False)

    @property
    def active(self) -> bool:
        """Whether they are learnt."""
        return self.values.requires_grad

    def forward(self, views: Tensor) -> Tensor:
        """(B) -> (B C)."""
        weight = self.weight[views][:, None]
        return (1 - weight) * self.values[self.lower[views]] + weight * self.values[self.upper[views]]


def moved(cameras: Cameras, twists: Tensor, unit: Tensor) -> Cameras:
    """Cameras turned and shifted in their own axes.

    Args:
        cameras: B views.
        twists: (B 6) rotation vector in radians, then translation in `unit`; their exponential is applied.
        unit: scalar, metres.
    """
    turn, shift = twists[:, :3], twists[:, 3:] * unit
    zero = torch.zeros_like(turn[:, 0])
    x, y, z = turn.unbind(1)
    rows = [[zero, -z, y], [z, zero, -x], [-y, x, zero]]
    skew = torch.stack([torch.stack(row, 1) for row in rows], 1)
    generator = nn.functional.pad(torch.cat([skew, shift[:, :, None]], 2), (0, 0, 0, 1))
    return replace(cameras, world_to_camera=torch.linalg.matrix_exp(generator) @ cameras.world_to_camera)


def exposed(pictures: Tensor, exposures: Tensor) -> Tensor:
    """Pictures under their exposures.

    Args:
        pictures: (B 3 H W).
        exposures: (B 6) logarithm of the gain of red, green, blue, then what is added to each.
    """
    gain, offset = exposures[:, :3].exp(), exposures[:, 3:]
    return pictures * gain[:, :, None, None] + offset[:, :, None, None]

"""What a view looks like without any learning: the yardsticks of every rendering recipe.

Legend: V views of the inputs, T target views, H W pixels. Each function takes packed inputs and targets (item b of
the inputs goes with item b of the targets) and returns (T 3 H W). Views carry the camera attribute `frame`.
"""

import torch
from torch import Tensor
from torch.nn import functional

from splatlearn.splatting.render import RenderOptions, render
from splatlearn.structures import SH_C0, Frames, Gaussians


def mean_color(inputs: Frames, targets: Frames) -> Tensor:
    """Every pixel is the mean colour of the item's input views."""
    means = [item.images.mean((0, 2, 3)) for item in inputs.split()]
    return torch.stack(means)[targets.item][:, :, None, None].expand_as(targets.images)


def copy(inputs: Frames, targets: Frames) -> Tensor:
    """The input view nearest in time that is not the target itself."""
    return inputs.images[nearest_other(inputs, targets)]


def depth_warp(inputs: Frames, targets: Frames) -> Tensor:
    """The view that `copy` takes, warped by the target's own depth; where that fails, the copy.

    A pixel fails when it has no depth or its point leaves the other view. Reading the target's depth makes this
    stronger than any forward warp of the input.

    Raises:
        MissingAttribute: the targets have no depth.
    """
    source = nearest_other(inputs, targets)
    xyz = targets.cameras.unproject(targets["depth"]).flatten(1, 2)
    view = source.repeat_interleave(xyz.shape[1])
    pixels, z = inputs.cameras.project(xyz.flatten(0, 1), view)
    size = pixels.new_tensor([targets.cameras.width, targets.cameras.height])
    grid = (2 * pixels / size - 1).view(len(targets), targets.cameras.height, targets.cameras.width, 2)
    warped = functional.grid_sample(inputs.images[source], grid, padding_mode="border", align_corners=False)
    inside = (grid.abs() <= 1).all(-1) & (z.view(grid.shape[:3]) > 0) & (targets["depth"] > 0)
    return torch.where(inside[:, None], warped, inputs.images[source])


def own_color(inputs: Frames, targets: Frames) -> Tensor:
    """The visible input points as opaque Gaussians of their own colour, one pixel wide (a standard deviation of half a
    pixel), over the mean colour.

    Raises:
        MissingAttribute: the inputs have no depth.
    """
    points = inputs.to_points()
    view = points.item
    pose = inputs.cameras.world_to_camera[view]
    z = torch.einsum("nj,nj->n", pose[:, 2, :3], points.xyz) + pose[:, 2, 3]
    pixel = z / inputs.cameras.intrinsics[view, 0, 0]
    gaussians = Gaussians(
        means=points.xyz,
        scales=0.5 * pixel[:, None].expand(-1, 3),
        quaternions=points.xyz.new_tensor([1.0, 0, 0, 0]).expand(len(points), 4),
        opacities=torch.ones_like(z),
        sh=((points["color"] - 0.5) / SH_C0)[:, None],
        counts=points.counts,
    ).join(inputs.counts)
    rendering = render(gaussians, targets.cameras, options=RenderOptions())
    return rendering.color + (1 - rendering.alpha) * mean_color(inputs, targets)


BASELINES = {"mean_colour": mean_color, "copy": copy, "depth_warp": depth_warp, "own_colour": own_color}
"""The baselines that need no training, by the name that reports use."""


def nearest_other(inputs: Frames, targets: Frames) -> Tensor:
    """(T) row of the input view of the same item that is nearest in raw frames without being the same frame.

    An item whose only input is the target itself gets that input.
    """
    distance = (targets.cameras["frame"][:, None] - inputs.cameras["frame"][None]).abs().double()
    distance = distance.masked_fill(distance == 0, 1e12)
    return distance.masked_fill(targets.item[:, None] != inputs.item[None], torch.inf).argmin(1)

"""The smallest rendering there is: tells whether a backend works here, and compiles its kernels."""

import torch

from splatlearn.structures import SH_C0, Cameras, Gaussians

SIZE = 9
EXPECTED = (0.9, 1.8, 0.9)
"""Colour, depth and alpha of the pixel in the middle, premultiplied."""


def one_gaussian(device: torch.device | str = "cpu") -> tuple[Gaussians, Cameras]:
    """A grey Gaussian of opacity 0.9, two metres before a camera of 9 x 9 pixels."""
    gaussians = Gaussians(
        counts=(1,),
        means=torch.tensor([[0.0, 0.0, 2.0]], device=device),
        scales=torch.full((1, 3), 0.5, device=device),
        quaternions=torch.tensor([[1.0, 0.0, 0.0, 0.0]], device=device),
        opacities=torch.tensor([0.9], device=device),
        sh=torch.full((1, 1, 3), 0.5 / SH_C0, device=device),
    )
    middle = SIZE / 2
    intrinsics = torch.tensor([[[8.0, 0.0, middle], [0.0, 8.0, middle], [0.0, 0.0, 1.0]]], device=device)
    pose = torch.eye(4, device=device)[None]
    return gaussians, Cameras(counts=(1,), world_to_camera=pose, intrinsics=intrinsics, width=SIZE, height=SIZE)

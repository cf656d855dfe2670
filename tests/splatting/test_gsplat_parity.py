"""The numbers of gsplat's own torch functions in float64, against our projection, harmonics and compositing.

Each comparison keeps to the tolerance that the cases state: 1e-10 + 1e-9 of the largest value. Not compared: fisheye
and orthographic cameras, precision matrices, radii and tables of tiles, none of which exists here (a footprint ends
where its alpha does, not at 3.33 standard deviations, and the reference bins nothing by id).
"""

import json
from typing import Any, NamedTuple

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from splatlearn.splatting import RenderOptions, harmonics
from splatlearn.splatting.projection import project, rotations, to_camera
from splatlearn.splatting.reference import composite


class Case(NamedTuple):
    """Tensors by name, and the settings they were made with."""

    io: dict[str, Tensor]
    config: dict[str, Any]

    @property
    def views(self) -> range:
        return range(self.config["cameras"])

    def leaves(self, *names: str) -> list[Tensor]:
        return [self.io[f"in.{name}"].clone().requires_grad_() for name in names]


@pytest.fixture(params=["projection_and_sh_1_camera", "projection_and_sh_3_cameras"])
def case(shared_parity, request) -> Case:
    folder = shared_parity / "gsplat" / request.param
    config = json.loads((folder / "case.json").read_text())["config"]
    return Case(load_file(folder / "io.safetensors"), config)


def same(found: Tensor, expected: Tensor) -> None:
    assert found.dtype == expected.dtype == torch.float64
    assert found.shape == expected.shape and expected.any()
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-10 + 1e-9 * float(expected.abs().max()))


def same_gradients(loss: Tensor, leaves: list[Tensor], case: Case, names: list[str]) -> None:
    for name, gradient in zip(names, torch.autograd.grad(loss, leaves), strict=True):
        same(gradient, case.io[f"grad.{name}"])


def test_rotations_and_covariances(case):
    quaternions, scales = case.leaves("quats", "scales")
    turns = rotations(quaternions)
    axes = turns * scales[:, None, :]
    covariances = axes @ axes.mT
    same(turns, case.io["out.rotmat"])
    same(covariances, case.io["out.covars"])
    loss = (covariances * case.io["in.cotangent.covars"]).sum()
    same_gradients(loss, [quaternions, scales], case, ["covars.quats", "covars.scales"])


def test_in_the_axes_of_the_camera(case):
    means, quaternions, scales = (case.io[f"in.{name}"] for name in ("means", "quats", "scales"))
    for view, pose in zip(case.views, case.io["in.viewmats"], strict=True):
        same(to_camera(means, pose), case.io["out.means_cam"][view])
        axes = pose[:3, :3] @ rotations(quaternions) * scales[:, None, :]
        same(axes @ axes.mT, case.io["out.covars_cam"][view])


def test_projection(case):
    names = ["means", "scales", "quats", "viewmats"]
    leaves = case.leaves(*names)
    loss = torch.zeros((), dtype=torch.float64)
    size = (case.config["width"], case.config["height"])
    for view in case.views:
        seen = project(*leaves[:3], leaves[3][view], case.io["in.Ks"][view], size, case.config["eps2d"])
        drawn = case.io["out.pinhole.valid"][view]
        fields = {
            "means2d": seen.centers,
            "conics": seen.conics,
            "depths": seen.depths,
            "compensations": seen.compensations,
        }
        for name, value in fields.items():
            same(value[drawn], case.io[f"out.pinhole.{name}"][view][drawn])
            loss = loss + (value[drawn] * case.io[f"in.cotangent.{name}"][view][drawn]).sum()
    same(loss[None], case.io["out.pinhole.loss"])
    same_gradients(loss, leaves, case, [f"pinhole.{name}" for name in names])


@pytest.mark.parametrize("degree", range(5))
def test_harmonics(case, degree):
    sh, directions = case.leaves("sh", "dirs")
    color = harmonics.evaluate(sh[:, : (degree + 1) ** 2], directions)
    same(color, case.io[f"out.sh.degree{degree}"])
    loss = (color * case.io["in.cotangent.sh_colors"]).sum()
    leaves, names = ([sh, directions], ["sh", "dirs"]) if degree else ([sh], ["sh"])
    same_gradients(loss, leaves, case, [f"sh.degree{degree}.{name}" for name in names])


def test_compositing(case):
    """Every Gaussian at every pixel: gsplat's torch function has neither a cut nor a stop."""
    options = RenderOptions(alpha_min=0, transmittance_min=0, alpha_max=0.999)
    names = ["means2d", "conics", "opacities", "colors"]
    fields = {name: case.io[f"out.pinhole.{name}"] for name in names[:2]}
    fields["opacities"] = case.io["in.opacities"].expand(len(case.views), -1)
    leaves = [(fields.get(name, case.io.get(f"in.{name}"))).clone().requires_grad_() for name in names]
    width, height = case.config["width"], case.config["height"]
    y, x = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
    pixels = torch.stack([x, y], -1).reshape(-1, 2).double()
    loss = torch.zeros((), dtype=torch.float64)
    for view in case.views:
        drawn = case.io["out.pinhole.valid"][view].nonzero().squeeze(1)
        drawn = drawn[case.io["out.pinhole.depths"][view, drawn].argsort(stable=True)]
        color, alpha = composite(*(leaf[view, drawn] for leaf in leaves), pixels, options)
        color, alpha = color.view(height, width, -1), alpha.view(height, width, 1)
        same(color, case.io["out.render.colors"][view])
        same(alpha, case.io["out.render.alphas"][view])
        loss = loss + (color * case.io["in.cotangent.render"][view]).sum()
        loss = loss + (alpha * case.io["in.cotangent.render_alphas"][view]).sum()
    same(loss[None], case.io["out.render.loss"])
    same_gradients(loss, leaves, case, [f"render.{name}" for name in names])

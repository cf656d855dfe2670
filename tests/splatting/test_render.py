"""`render` on every backend: shapes, options, what is defined at the edges, what must not matter, errors.

`gsplat` is here with a stand-in for the library: what it leaves open, its adapter must define.
"""

import math
from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch

from splatlearn.data.augment import transform_cameras
from splatlearn.errors import UserError
from splatlearn.splatting import Rendering, RenderOptions, render
from splatlearn.structures import SH_C0, Cameras, Gaussians
from splatting.gsplat_stand_in import installed
from splatting.scenes import random_cameras, random_gaussians

BACKENDS = ["reference", "cpu", "gsplat"]
EYE = torch.eye(4)


@pytest.fixture(params=BACKENDS)
def options(request):
    with installed() if request.param == "gsplat" else nullcontext():
        yield RenderOptions(backend=request.param)


def one_gaussian(**changes) -> Gaussians:
    """A white ball of 0.1 m, two metres ahead of the origin."""
    values = {
        "means": torch.tensor([[0.0, 0.0, 2.0]]),
        "scales": torch.full((1, 3), 0.1),
        "quaternions": torch.tensor([[1.0, 0.0, 0.0, 0.0]]),
        "opacities": torch.tensor([0.9]),
        "sh": torch.full((1, 1, 3), 0.5 / SH_C0),
    }
    return Gaussians(**(values | changes))


def one_camera(width: int = 33, height: int = 21) -> Cameras:
    """At the origin, along +z, 50 px focal length; the centre of the middle pixel lies on the axis."""
    intrinsics = torch.tensor([[50.0, 0, width / 2], [0, 50.0, height / 2], [0, 0, 1]])
    return Cameras(world_to_camera=EYE[None].clone(), intrinsics=intrinsics[None], width=width, height=height)


def assert_black(rendering: Rendering) -> None:
    assert not rendering.color.any() and not rendering.depth.any() and not rendering.alpha.any()


def test_shapes_and_zero_feature_channels(options):
    seen = render(random_gaussians(50, items=2), random_cameras(3, items=2), options=options)
    assert seen.color.shape == (6, 3, 28, 44)
    assert seen.features.shape == (6, 0, 28, 44)
    assert seen.depth.shape == seen.alpha.shape == (6, 1, 28, 44)


def test_one_gaussian_by_hand(options):
    seen = render(one_gaussian(), one_camera(), options=options)
    variance = (50 * 0.1 / 2) ** 2 + 0.3
    x = torch.arange(33) - 16.0
    expected = 0.9 * torch.exp(-0.5 * x * x / variance)
    expected = torch.where(expected >= 1 / 255, expected, 0)
    assert torch.allclose(seen.alpha[0, 0, 10], expected, atol=1e-6)
    assert torch.allclose(seen.color[0, :, 10], expected.expand(3, -1), atol=1e-6)
    assert torch.allclose(seen.depth[0, 0, 10], 2 * expected, atol=1e-6)


def test_item_b_is_seen_by_item_b(options):
    cloud, cameras = random_gaussians(80, items=3), random_cameras(2, items=3)
    together = render(cloud, cameras, options=options)
    apart = [render(g, c, options=options) for g, c in zip(cloud.split(), cameras.split(), strict=True)]
    assert torch.allclose(together.color, torch.cat([seen.color for seen in apart]), atol=1e-6)
    assert torch.allclose(together.depth, torch.cat([seen.depth for seen in apart]), atol=1e-6)


def test_items_of_different_size_and_without_views(options):
    parts = [random_gaussians(n, seed=n) for n in (30, 0, 70)]
    cloud = Gaussians.pack([parts[0], parts[1], parts[2]])
    cameras = random_cameras(4).regroup((0, 1, 3))
    seen = render(cloud, cameras, options=options)
    assert not seen.alpha[0].any()
    alone = render(parts[2], cameras.slice(2), options=options)
    assert torch.allclose(seen.color[1:], alone.color, atol=1e-6)


def test_no_gaussians_and_no_views(options):
    nothing = random_gaussians(0)
    leaf = nothing.means.requires_grad_()
    seen = render(nothing, random_cameras(2), options=options)
    assert_black(seen)
    (gradient,) = torch.autograd.grad(seen.color.sum(), leaf)
    assert gradient.shape == (0, 3)
    assert render(random_gaussians(9), random_cameras(0), options=options).color.shape == (0, 3, 28, 44)


@pytest.mark.parametrize(
    "changes",
    [
        {"means": torch.tensor([[0.0, 0.0, -2.0]])},
        {"means": torch.tensor([[0.0, 0.0, 0.0]])},
        {"means": torch.tensor([[0.0, 0.0, 0.005]])},
        {"means": torch.tensor([[500.0, 0.0, 2.0]])},
        {"opacities": torch.tensor([0.0])},
        {"opacities": torch.tensor([0.0039])},
    ],
    ids=["behind", "at the camera", "before near", "outside", "opacity 0", "below alpha_min"],
)
def test_what_is_not_drawn_has_zero_gradient(options, changes):
    cloud = one_gaussian(**changes)
    leaves = [getattr(cloud, name).requires_grad_() for name in ("means", "scales", "quaternions", "opacities", "sh")]
    seen = render(cloud, one_camera(), options=options)
    assert_black(seen)
    gradients = torch.autograd.grad((seen.color + seen.depth).sum(), leaves)
    assert not any(gradient.any() for gradient in gradients)


def test_far_plane(options):
    assert render(one_gaussian(), one_camera(), options=replace(options, far=2.5)).alpha.any()
    assert_black(render(one_gaussian(), one_camera(), options=replace(options, far=1.5)))


def test_opacity_one_is_capped(options):
    cloud = one_gaussian(opacities=torch.tensor([1.0]), scales=torch.full((1, 3), 10.0))
    seen = render(cloud, one_camera(), options=options)
    assert seen.alpha.max().item() == pytest.approx(0.999, abs=1e-6)


@pytest.mark.parametrize("scale", [0.0, 1e-9, 1e-4, 1e3, 1e6])
def test_any_scale_is_finite(options, scale):
    cloud = one_gaussian(scales=torch.tensor([[scale, scale, 0.1]]))
    leaves = [getattr(cloud, name).requires_grad_() for name in ("means", "scales", "quaternions", "opacities", "sh")]
    seen = render(cloud, one_camera(), options=options)
    gradients = torch.autograd.grad((seen.color + seen.depth + seen.alpha).sum(), leaves)
    assert all(value.isfinite().all() for value in (*seen, *gradients))
    assert seen.alpha[0, 0, 10, 16].item() == pytest.approx(0.9, abs=1e-3)


def test_zero_quaternion_is_the_identity(options):
    stretched = torch.tensor([[0.3, 0.1, 0.05]])
    turns = torch.tensor([[1.0, 0, 0, 0], [0, 0, 0, 0]]).requires_grad_()
    unit = render(one_gaussian(scales=stretched, quaternions=turns[:1]), one_camera(), options=options)
    zero = render(one_gaussian(scales=stretched, quaternions=turns[1:]), one_camera(), options=options)
    assert torch.equal(unit.color, zero.color)
    (gradient,) = torch.autograd.grad(zero.color.sum(), turns)
    assert not gradient.any()


@pytest.mark.parametrize("length", [2e-12, 1e-8, 1e8, 1e19, 1e38])
def test_a_quaternion_of_any_length_turns_alike(options, length):
    cloud = one_gaussian(scales=torch.tensor([[0.3, 0.1, 0.05]]))
    turn = torch.tensor([[0.8, 0.2, -0.4, 0.4]])
    unit, other = (replace(cloud, quaternions=(turn * size).requires_grad_()) for size in (1.0, length))
    weights = torch.randn(21, 33, generator=torch.Generator().manual_seed(0))
    pictures = [render(g, one_camera(), options=options).color for g in (unit, other)]
    assert torch.allclose(*pictures, atol=2e-6)
    by_unit, by_other = (
        torch.autograd.grad((picture * weights).sum(), g.quaternions)[0]
        for picture, g in zip(pictures, (unit, other), strict=True)
    )
    if length < 1e30:  # there the gradient is below what float32 holds
        torch.testing.assert_close(by_other * length, by_unit, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("row", [[0, 9e-13, 0, 0], [0, 0, 0, 1e-13], [1e-30, 0, 1e-30, 0]])
def test_a_quaternion_of_nearly_no_length_is_the_identity(options, row):
    stretched = {"scales": torch.tensor([[0.3, 0.1, 0.05]])}
    short = one_gaussian(**stretched, quaternions=torch.tensor([row]).requires_grad_())
    picture = render(short, one_camera(), options=options).color
    assert torch.equal(picture, render(one_gaussian(**stretched), one_camera(), options=options).color)
    (gradient,) = torch.autograd.grad(picture.sum(), short.quaternions)
    assert not gradient.any()


@pytest.mark.parametrize("name", ["means", "scales", "quaternions", "opacities", "sh"])
def test_a_value_that_is_not_finite_spoils_its_item_and_no_other(options, name):
    cloud, cameras = random_gaussians(40, items=2), random_cameras(2, items=2)
    getattr(cloud, name)[7].fill_(math.nan if name != "scales" else math.inf)
    seen = render(cloud, cameras, options=options)
    for layer in (seen.color, seen.depth, seen.alpha):
        assert layer[:2].isnan().all() and layer[2:].isfinite().all()


def test_a_camera_that_is_not_finite_spoils_its_view(options):
    cameras = random_cameras(3)
    cameras.world_to_camera[1, 0, 0] = math.nan
    color = render(random_gaussians(40), cameras, options=options).color
    assert color[1].isnan().all() and color[::2].isfinite().all()
    cameras.intrinsics[2] = math.nan  # its skew too
    color = render(random_gaussians(40), cameras, options=options).color
    assert color[1:].isnan().all() and color[0].isfinite().all()


def test_order_of_gaussians_does_not_matter(options):
    cloud, cameras = random_gaussians(200), random_cameras(1)
    shuffled = cloud.rows(torch.randperm(200, generator=torch.Generator().manual_seed(0)))
    one, other = (render(g, cameras, options=options) for g in (cloud, shuffled))
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(one, other, strict=True))


def test_equal_depths_are_drawn_by_row(options):
    pair = Gaussians.pack([one_gaussian(sh=torch.full((1, 1, 3), value)) for value in (1.0, -1.0)]).regroup((2,))
    color = render(pair, one_camera(), options=options).color[0, 0, 10, 16]
    near, far = 0.5 + SH_C0, 0.5 - SH_C0
    assert color.item() == pytest.approx(0.9 * near + 0.1 * 0.9 * far, abs=1e-5)


def test_rigid_motion_of_cloud_and_cameras_changes_nothing(options):
    cloud, cameras = random_gaussians(150, degree=0), random_cameras(2)
    angle = 0.7
    motion = torch.eye(4)
    motion[:2, :2] = torch.tensor([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    motion[:3, 3] = torch.tensor([3.0, -2.0, 1.0])
    w, x, y, z = cloud.quaternions.unbind(1)
    c, s = math.cos(angle / 2), math.sin(angle / 2)
    turned = torch.stack([c * w - s * z, c * x - s * y, c * y + s * x, c * z + s * w], 1)
    moved = replace(cloud, means=cloud.means @ motion[:3, :3].T + motion[:3, 3], quaternions=turned)
    one = render(cloud, cameras, options=options)
    other = render(moved, transform_cameras(cameras, motion), options=options)
    assert (one.color - other.color).abs().mean() < 1e-5
    assert (one.depth - other.depth).abs().mean() < 1e-5


def test_autocast_changes_nothing(options):
    cloud, cameras = random_gaussians(40, degree=1), random_cameras(1)
    cloud = replace(cloud, means=cloud.means.requires_grad_())
    exact = render(cloud, cameras, options=options)
    with torch.autocast("cpu", torch.bfloat16):
        found = render(cloud, cameras, options=options)
    assert all(map(torch.equal, found, exact))
    assert torch.equal(*(torch.autograd.grad(picture.color.sum(), cloud.means)[0] for picture in (found, exact)))


def test_background_fills_what_is_left(options):
    cloud, cameras = random_gaussians(30), random_cameras(1)
    black = render(cloud, cameras, options=options)
    blue = render(cloud, cameras, options=replace(options, background=(0.0, 0.25, 1.0)))
    expected = black.color + (1 - black.alpha) * torch.tensor([0.0, 0.25, 1.0])[:, None, None]
    assert torch.allclose(blue.color, expected)
    assert torch.equal(blue.alpha, black.alpha)


def test_a_background_of_each_view(options):
    cloud, cameras = random_gaussians(30), random_cameras(3)
    behind = torch.rand(3, 3, requires_grad=True)
    seen = render(cloud, cameras, background=behind, options=replace(options, background=(1.0, 0.0, 0.0)))
    for view, color in enumerate(behind.detach()):
        alone = render(cloud, cameras, options=replace(options, background=tuple(color.tolist())))
        assert torch.allclose(seen.color[view], alone.color[view])
    (gradient,) = torch.autograd.grad(seen.color.sum(), behind)
    assert torch.allclose(gradient, (1 - seen.alpha).sum((2, 3)).expand(3, 3), rtol=1e-4)
    with pytest.raises(UserError, match=r"background has shape \(3,\), expected \(3, 3\)"):
        render(cloud, cameras, background=behind[0], options=options)


def test_normalized_depth(options):
    seen = render(one_gaussian(), one_camera(), options=replace(options, depth="normalized"))
    drawn = seen.alpha > 0
    assert torch.allclose(seen.depth[drawn], torch.tensor(2.0))
    assert not seen.depth[~drawn].any()


def test_color_depends_on_the_side_it_is_seen_from(options):
    sh = torch.zeros(1, 4, 3)
    sh[0, 2, 0] = 1.0
    front = one_camera()
    back_pose = torch.diag(torch.tensor([-1.0, 1, -1, 1]))
    back_pose[2, 3] = 4.0
    back = replace(front, world_to_camera=back_pose[None])
    reds = [render(one_gaussian(sh=sh), c, options=options).color[0, 0, 10, 16].item() for c in (front, back)]
    assert reds[0] == pytest.approx(0.9 * (0.5 + 0.4886025), abs=1e-5)
    assert reds[1] == pytest.approx(0.9 * (0.5 - 0.4886025), abs=1e-5)


@pytest.mark.parametrize("size", [(1, 1), (16, 16), (17, 15), (5, 40)])
def test_any_image_size(options, size):
    cameras = one_camera(*size)
    assert render(one_gaussian(), cameras, options=options).alpha.shape == (1, 1, size[1], size[0])


@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_everything_is_drawn_everywhere_without_a_cut(backend):
    options = RenderOptions(backend=backend, alpha_min=0.0, transmittance_min=0.0)
    assert (render(one_gaussian(scales=torch.full((1, 3), 0.3)), one_camera(), options=options).alpha > 0).all()


def test_auto_takes_the_fast_backend_where_it_applies():
    cloud, cameras = random_gaussians(20), random_cameras(1)
    fast, auto = (render(cloud, cameras, options=RenderOptions(backend=name)) for name in ("cpu", "auto"))
    assert torch.equal(fast.color, auto.color)
    double = random_gaussians(20, dtype=torch.float64), random_cameras(1, dtype=torch.float64)
    assert render(*double).color.dtype == torch.float64


def test_cpu_backend_refuses_what_it_cannot_render():
    double = random_gaussians(3, dtype=torch.float64), random_cameras(1, dtype=torch.float64)
    with pytest.raises(UserError, match=r"float32 tensors on the CPU; got torch\.float64"):
        render(*double, options=RenderOptions(backend="cpu"))


def test_options_report_all_errors_at_once():
    with pytest.raises(UserError, match=r"backend is 'gpu'.*alpha_max is 1.*near is 2 and far 1"):
        RenderOptions(backend="gpu", alpha_max=1, near=2, far=1)  # pyright: ignore[reportArgumentType]


def test_wrong_inputs_are_named():
    cloud, cameras = random_gaussians(5), random_cameras(2)
    wrong = {
        "1 items of Gaussians and 2 of cameras": (cloud, cameras.regroup((1, 1))),
        r"quaternions has shape \(5, 3\), expected \(5, 4\)": (replace(cloud, quaternions=cloud.means), cameras),
        r"opacities has shape \(5, 1\)": (replace(cloud, opacities=cloud.opacities[:, None]), cameras),
        r"intrinsics has shape \(2, 4, 4\)": (cloud, replace(cameras, intrinsics=cameras.world_to_camera)),
        "scales is torch.float64": (replace(cloud, scales=cloud.scales.double()), cameras),
        "5 coefficients": (replace(cloud, sh=torch.zeros(5, 5, 3)), cameras),
        "0 x 9 pixels": (cloud, replace(cameras, width=0, height=9)),
        "skew": (cloud, replace(cameras, intrinsics=cameras.intrinsics + torch.eye(3).roll(1, 1))),
    }
    for message, inputs in wrong.items():
        with pytest.raises(UserError, match=message):
            render(*inputs)

"""Epipolar geometry and attention across views, on made cameras."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize, pad

from heads.views import cameras_around
from splatlearn.config import configure
from splatlearn.data.augment import transform_cameras
from splatlearn.errors import ConfigError, UserError
from splatlearn.heads.attention import ImageAttention, ImageAttentionConfig
from splatlearn.heads.decoder import gather_pixels
from splatlearn.heads.epipolar import (
    EpipolarConfig,
    EpipolarTransformer,
    RayAttention,
)
from splatlearn.heads.epipolar_lines import epipolar_lines, relative_disparity, view_pairs
from splatlearn.structures import Packed

TINY = {
    "width": 16,
    "samples": 8,
    "layers": 1,
    "heads": 2,
    "head_width": 8,
    "octaves": 4,
    "refinement_kernel": 3,
    "image": {"patch": 2, "octaves": 4, "layers": 1, "heads": 2, "head_width": 8, "width": 16, "hidden": 32},
}


def bounds_of(views: int, near: float = 0.2, far: float = 10.0) -> Tensor:
    return torch.tensor([[near, far]], dtype=torch.float64).expand(views, 2)


def tiny(**options: object) -> EpipolarTransformer:
    torch.manual_seed(0)
    return EpipolarTransformer(configure(EpipolarConfig, {**TINY, **options}, "epipolar")).double()


class TestPairs:
    def test_all_ordered_pairs_of_an_item(self) -> None:
        pairs = view_pairs((2, 3))
        assert pairs.view.tolist() == [0, 1, 2, 2, 3, 3, 4, 4]
        assert pairs.other.tolist() == [1, 0, 3, 4, 2, 4, 2, 3]

    def test_a_lone_view_is_refused(self) -> None:
        with pytest.raises(UserError, match=r"2 or more views an item; views per item: \(2, 1\)"):
            view_pairs((2, 1))


class TestLines:
    cameras = cameras_around((2,))
    pairs = view_pairs((2,))

    def test_true_point_lies_at_its_depth(self) -> None:
        lines = epipolar_lines(self.cameras, self.pairs, bounds_of(2), 64)
        assert lines.valid.float().mean() > 0.9
        directions = torch.nn.functional.normalize(self.cameras.directions().flatten(1, 2), dim=-1)
        in_view = directions[:, :, None] * lines.depths[..., None]
        pose = self.cameras.camera_to_world
        world = torch.einsum("vij,vrsj->vrsi", pose[:, :3, :3], in_view) + pose[:, None, None, :3, 3]
        for pair, (valid, other) in enumerate(zip(lines.valid, self.pairs.other)):
            seen = world[pair][valid].flatten(0, 1)
            pixels, depth = self.cameras.project(seen, other.expand(len(seen)))
            finite = seen.isfinite().all(1) & (depth > 0)
            assert torch.allclose(pixels[finite], lines.pixels[pair][valid].flatten(0, 1)[finite], atol=1e-6)

    def test_depth_grows_within_bounds(self) -> None:
        lines = epipolar_lines(self.cameras, self.pairs, bounds_of(2), 16)
        depth = lines.depths[lines.valid]
        assert bool((depth.diff(dim=1) > 0).all())
        assert depth.min() >= 0.2 and depth.max() <= 10.0

    def test_samples_stay_in_the_image(self) -> None:
        lines = epipolar_lines(self.cameras, self.pairs, bounds_of(2), 16)
        limits = lines.pixels.new_tensor([self.cameras.width, self.cameras.height])
        assert bool(((lines.pixels > -1e-9) & (lines.pixels < limits + 1e-9)).all())

    def test_looking_away_sees_nothing(self) -> None:
        pose = self.cameras.world_to_camera.clone()
        pose[1, [0, 2]] *= -1
        lines = epipolar_lines(replace(self.cameras, world_to_camera=pose), self.pairs, bounds_of(2), 8)
        assert not bool(lines.valid.any())
        assert bool((lines.pixels == 0).all())
        assert not bool(lines.depths.isnan().any())

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    def test_same_place_is_finite(self, dtype: torch.dtype) -> None:
        pose = self.cameras.world_to_camera[:1].expand(2, 4, 4)
        still = replace(self.cameras, world_to_camera=pose.to(dtype), intrinsics=self.cameras.intrinsics.to(dtype))
        lines = epipolar_lines(still, self.pairs, bounds_of(2).to(dtype), 8)
        assert bool(lines.valid.all())
        assert bool((lines.depths == torch.inf).all())
        centres = still.pixel_grid().flatten(0, 1)[:, None].expand(-1, 8, -1)
        assert torch.allclose(lines.pixels[0], centres, atol=1e-4)

    def test_facing_rays_are_finite(self) -> None:
        pose = torch.eye(4, dtype=torch.float64).repeat(2, 1, 1)
        pose[1, [0, 2], [0, 2]], pose[1, 2, 3] = -1, 3.0
        intrinsics = torch.tensor([[30.0, 0, 16.5], [0, 30, 12.5], [0, 0, 1]]).double().repeat(2, 1, 1)
        facing = replace(self.cameras, world_to_camera=pose, intrinsics=intrinsics)
        assert not bool(epipolar_lines(facing, self.pairs, bounds_of(2), 8).depths.isnan().any())

    @pytest.mark.parametrize("noise", [0, 1e-6])
    def test_depths_solve_the_normal_equations(self, noise: float) -> None:
        """sum (n n' - 1) x = sum (n n' - 1) o, of directions as long as inexact rotations leave them."""
        torch.manual_seed(0)
        pose = self.cameras.world_to_camera.clone()
        pose[:, :3, :3] += noise * torch.randn(2, 3, 3)
        cameras = replace(self.cameras, world_to_camera=pose)
        lines, back = epipolar_lines(cameras, self.pairs, bounds_of(2), 8), torch.linalg.inv(pose)
        for view, other in ((0, 1), (1, 0)):
            sight = pad(lines.pixels[view], (0, 1), value=1.0) @ torch.linalg.inv(cameras.intrinsics[other]).T
            sight = normalize(sight, dim=-1) @ back[other, :3, :3].T
            ray = normalize(cameras.directions()[view].flatten(0, 1), dim=-1) @ back[view, :3, :3].T
            matrices = [n[..., None] * n[..., None, :] - torch.eye(3) for n in (ray[:, None].expand_as(sight), sight)]
            baseline = (back[other] - back[view])[:3, 3:]
            expected = torch.linalg.solve(sum(matrices), matrices[1] @ baseline)[..., 0].norm(dim=-1)
            finite = lines.depths[view].isfinite()
            assert bool(finite.any())
            assert torch.allclose(lines.depths[view][finite], expected[finite], rtol=1e-7)


class TestRelativeDisparity:
    def test_ends(self) -> None:
        near, far = torch.tensor(0.2), torch.tensor(10.0)
        values = relative_disparity(torch.tensor([0.2, 10.0]), near, far)
        assert torch.allclose(values, torch.tensor([0.0, 1.0]), atol=1e-6)


class TestRayAttention:
    def test_agrees_with_keys_and_values(self) -> None:
        torch.manual_seed(0)
        attention = RayAttention(6, 2, 5).double()
        queries, seen = (torch.randn(3, 4, *rest, dtype=torch.float64) for rest in ((6,), (7, 6)))
        query = attention.query(queries).view(3, 4, 1, 2, 5).transpose(2, 3)
        key, value = (layer(seen).view(3, 4, 7, 2, 5).transpose(2, 3) for layer in (attention.key, attention.value))
        mixed = torch.nn.functional.scaled_dot_product_attention(query, key, value)
        expected = attention.out(mixed.transpose(2, 3).flatten(2))
        assert torch.allclose(attention(queries, seen), expected)


class TestTransformer:
    def test_shape_and_gradients(self) -> None:
        network = tiny()
        features = torch.randn(2, 16, 24, 32, dtype=torch.float64, requires_grad=True)
        out = network(features, cameras_around((2,)))
        assert out.shape == features.shape
        out.square().sum().backward()
        assert features.grad is not None and bool((features.grad.abs().sum(1) > 0).all())
        assert all(parameter.grad is not None for parameter in network.parameters())

    @pytest.mark.parametrize("kernel", [1, 3])
    def test_wanted_pixels_alone(self, kernel: int) -> None:
        network, cameras = tiny(refinement_kernel=kernel), cameras_around((2,))
        features = torch.randn(2, 16, 24, 32, dtype=torch.float64, requires_grad=True)
        rows = Packed(counts=(3, 2), attributes={"pixel": torch.tensor([0, 767, 5, 400, 33])})
        found, expected = network(features, cameras, rows=rows), gather_pixels(network(features, cameras), rows)
        assert torch.allclose(found, expected, rtol=1e-12, atol=1e-12)
        both = [torch.autograd.grad(out.square().sum(), features)[0] for out in (found, expected)]
        assert torch.allclose(*both, rtol=1e-10, atol=1e-12)

    def test_items_do_not_see_each_other(self) -> None:
        network = tiny(views=3)
        cameras = cameras_around((2, 3, 2))
        features = torch.randn(7, 16, 24, 32, dtype=torch.float64)
        order = torch.tensor([1, 0, 2, 0, 1, 0, 1])
        packed = network(features, cameras, order=order)
        for item, part in enumerate(cameras.split()):
            rows = slice(cameras.offsets[item], cameras.offsets[item + 1])
            alone = network(features[rows], part, order=order[rows])
            assert torch.allclose(packed[rows], alone, atol=1e-10)

    def test_other_views_matter(self) -> None:
        network = tiny()
        features = torch.randn(2, 16, 24, 32, dtype=torch.float64)
        changed = features.clone()
        changed[1] += 1
        before, after = (network(value, cameras_around((2,)))[0] for value in (features, changed))
        assert not torch.allclose(before, after)

    def test_order_tells_three_views_apart(self) -> None:
        network = tiny(views=3)
        features, cameras = torch.randn(3, 16, 24, 32, dtype=torch.float64), cameras_around((3,))
        first, second = (network(features, cameras, order=torch.tensor(o)) for o in ([0, 1, 2], [2, 1, 0]))
        assert not torch.allclose(first, second)

    def test_rigid_motion_of_the_world_changes_nothing(self) -> None:
        network, cameras = tiny(), cameras_around((2,))
        move = cameras_around((1,), seed=5).world_to_camera[0]
        features = torch.randn(2, 16, 24, 32, dtype=torch.float64)
        moved = network(features, transform_cameras(cameras, move))
        assert torch.allclose(network(features, cameras), moved, atol=1e-7)

    def test_float32_is_close_to_float64(self) -> None:
        network, features = tiny(), torch.randn(2, 16, 24, 32, dtype=torch.float64)
        expected = network(features, cameras_around((2,)))
        single = network.float()(features.float(), cameras_around((2,), dtype=torch.float32))
        assert (single - expected).norm() < 1e-3 * expected.norm()

    def test_half_precision_keeps_places_apart(self) -> None:
        attention = ImageAttention(ImageAttentionConfig(patch=1, octaves=10), 16)
        exact = attention._positions(torch.zeros(1, 30, 40, 1))
        half = attention._positions(torch.zeros(1, 30, 40, 1, dtype=torch.bfloat16))
        assert half.dtype == torch.bfloat16
        assert (half.float() - exact).abs().max() < 4e-3

    def test_autocast_keeps_the_geometry(self) -> None:
        network, cameras = tiny(views=3).float(), cameras_around((2, 3), dtype=torch.float32)
        features, order = torch.randn(5, 16, 24, 32), torch.tensor([0, 1, 2, 0, 1])
        expected = network(features, cameras, order=order)
        with torch.autocast("cpu", torch.bfloat16):
            half = network(features, cameras, order=order)
        assert (half - expected).norm() < 0.02 * expected.norm()


class TestErrors:
    def test_all_at_the_door(self) -> None:
        network = tiny()
        with pytest.raises(UserError, match=r"multiples of downscale \* image.patch = 8, got 30x24.*32x24"):
            network(torch.zeros(2, 16, 24, 30).double(), cameras_around((2,), width=30))
        with pytest.raises(UserError, match=r"2 feature maps of 16x24, but 2 cameras of 32x24"):
            network(torch.zeros(2, 16, 24, 16).double(), cameras_around((2,)))
        with pytest.raises(UserError, match=r"an item has 3 views; the config allows views=2"):
            network(torch.zeros(3, 16, 24, 32).double(), cameras_around((3,)))
        with pytest.raises(UserError, match=r"needs `order`, permutations of the views drawn"):
            tiny(views=3)(torch.zeros(3, 16, 24, 32).double(), cameras_around((3,)))

    def test_config(self) -> None:
        with pytest.raises(ConfigError, match="odd size is needed, got 4"):
            EpipolarConfig(refinement_kernel=4)
        with pytest.raises(ConfigError, match=r"0 < near < far is needed, got 3.0 and 1.0"):
            EpipolarConfig(near=3.0, far=1.0)
        with pytest.raises(ConfigError, match="2 or more, got 1"):
            EpipolarConfig(views=1)

"""Both Gaussian formulations: start, ranges, gradients, messages."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from heads.views import cameras_around, masked_points
from splatlearn.data.augment import transform_cameras
from splatlearn.errors import ConfigError, MissingAttribute, UserError
from splatlearn.heads.gaussians import (
    DepthConfig,
    DepthHead,
    OffsetConfig,
    OffsetHead,
    map_probability,
    place_to_depth,
)
from splatlearn.splatting.render import RenderOptions, render
from splatlearn.structures import SH_C0, Cameras, Gaussians, Packed, Points

CHANNELS = 24
HEADS: dict[str, tuple[type, Any]] = {
    "offset": (OffsetHead, OffsetConfig()),
    "offset, 3 a point": (OffsetHead, OffsetConfig(per_point=3, sh_degree=1)),
    "offset, own colour": (OffsetHead, OffsetConfig(own_color=True)),
    "depth": (DepthHead, DepthConfig()),
    "depth, 3 a pixel": (DepthHead, DepthConfig(per_point=3, sh_degree=1)),
    "depth, disparity": (DepthHead, DepthConfig(spacing="disparity", sh_degree=0)),
}


def build(name: str) -> nn.Module:
    torch.manual_seed(0)
    kind, config = HEADS[name]
    return kind(config, CHANNELS)


def setting(dtype: torch.dtype = torch.float32, views: int = 2, size: tuple[int, int] = (32, 24)):
    cameras = cameras_around((views,), *size, dtype=dtype)
    frames, points = masked_points(cameras)
    generator = torch.Generator().manual_seed(1)
    features = torch.randn(len(points), CHANNELS, generator=generator, dtype=dtype)
    return frames, points, features


@pytest.mark.parametrize("name", HEADS)
class TestStart:
    """What the heads predict before any step."""

    def test_most_gaussians_learn_and_the_picture_is_opaque(self, name: str) -> None:
        frames, points, features = setting(size=(32, 24))
        gaussians = build(name)(features, points, frames.cameras)
        for value in (gaussians.means, gaussians.opacities, gaussians.sh):
            value.retain_grad()
        rendering = render(
            gaussians.regroup((len(gaussians),)), frames.cameras, options=RenderOptions(backend="reference")
        )
        (rendering.color - frames.images).square().mean().backward()
        alpha = rendering.alpha.mean()
        learning = (gaussians.sh.grad.abs().sum((1, 2)) > 0) & (gaussians.means.grad.abs().sum(1) > 0)
        assert alpha > 0.3, f"mean alpha {alpha:.3f}"
        assert learning.float().mean() > 0.9, f"{learning.float().mean():.3f} of the Gaussians learn"
        assert (gaussians.opacities.grad != 0).float().mean() > 0.9

    def test_size_is_about_a_pixel(self, name: str) -> None:
        frames, points, features = setting()
        gaussians = build(name)(features, points, frames.cameras)
        depth = frames.cameras.project(gaussians.means, gaussians.item)[1]
        pixels = gaussians.scales.mean(1) * frames.cameras.intrinsics[0, 0, 0] / depth
        assert 0.7 < pixels.median() < 1.3

    def test_every_weight_gets_a_gradient(self, name: str) -> None:
        frames, points, features = setting()
        head = build(name)
        gaussians = head(features.requires_grad_(), points, frames.cameras)
        values = [getattr(gaussians, field) for field in ("means", "scales", "quaternions", "opacities", "sh")]
        sum(value.sin().sum() for value in values).backward()
        rows = [head.attributes.weight.grad]
        if hasattr(head, "depth"):  # offsets of bins that no row chose learn nothing
            rows.append(head.depth.weight.grad[: head.config.bins])
        assert all(bool(row.any(1).all()) for row in rows)
        assert features.grad is not None and bool(features.grad.any(1).all())


@pytest.mark.parametrize("name", HEADS)
class TestGaussians:
    def test_shapes_and_ranges(self, name: str) -> None:
        frames, points, features = setting()
        head = build(name)
        gaussians = head(10 * features, points, frames.cameras)
        k, coefficients = head.config.per_point, head.config.coefficients
        assert gaussians.counts == tuple(count * k for count in points.counts)
        assert gaussians.sh.shape == (len(points) * k, coefficients, 3)
        assert bool((gaussians.scales > 0).all())
        assert bool(((gaussians.opacities >= 0) & (gaussians.opacities <= 1)).all())
        assert torch.allclose(gaussians.quaternions.norm(dim=1), torch.ones(len(gaussians)), atol=1e-5)

    def test_views_are_independent(self, name: str) -> None:
        frames, points, features = setting(torch.float64)
        head = build(name).double()
        joint = head(features, points, frames.cameras)
        parts = features.split(points.counts)
        alone = [head(f, p, c) for f, p, c in zip(parts, points.split(), separate(frames.cameras))]
        assert torch.allclose(joint.means, torch.cat([part.means for part in alone]))
        assert torch.allclose(joint.sh, torch.cat([part.sh for part in alone]))

    def test_turning_the_world_turns_the_gaussians(self, name: str) -> None:
        """Everything is predicted in the camera's axes, but for the offset from a point."""
        frames, points, features = setting(torch.float64)
        head = build(name).double()
        move = cameras_around((1,), seed=7).world_to_camera[0]
        before = head(features, points, frames.cameras)
        moved = transform_cameras(frames.cameras, move)
        xyz = points.xyz @ move[:3, :3].T + move[:3, 3]
        after = head(features, type(points)(xyz=xyz, counts=points.counts, attributes=points.attributes), moved)
        if not name.startswith("offset"):
            assert torch.allclose(after.means, before.means @ move[:3, :3].T + move[:3, 3])
            pictures = [
                render(g.regroup((len(g),)), c, options=RenderOptions(backend="reference")).color
                for g, c in ((before, frames.cameras), (after, moved))
            ]
            assert torch.allclose(pictures[0], pictures[1], atol=1e-6)
        assert torch.allclose(after.scales, before.scales)

    def test_autocast_keeps_the_geometry(self, name: str) -> None:
        frames, points, features = setting()
        head = build(name)
        expected = head(features, points, frames.cameras)
        with torch.autocast("cpu", torch.bfloat16):
            half = head(features, points, frames.cameras)
        assert half.means.dtype == half.sh.dtype == torch.float32
        if name.startswith("offset"):
            assert torch.allclose(half.means, expected.means, atol=1e-4)
        pixels = [frames.cameras.project(g.means, g.item)[0] for g in (half, expected)]
        assert (pixels[0] - pixels[1]).abs().max() < 0.05
        assert torch.allclose(half.sh, expected.sh, atol=0.05)

    def test_empty_view(self, name: str) -> None:
        frames, points, features = setting()
        first = points.counts[0]
        empty = points.rows(torch.arange(first)) if first else points
        gaussians = build(name)(features[:first], empty, frames.cameras)
        assert gaussians.counts[1] == 0


def separate(cameras: Cameras) -> list[Cameras]:
    return cameras.regroup((1,) * len(cameras)).split()


class TestOffsetHead:
    def test_centres_stay_within_the_radius(self) -> None:
        frames, points, features = setting()
        gaussians = build("offset")(1000 * features, points, frames.cameras)
        distance = (gaussians.means - points.xyz).abs()
        assert distance.max() <= 0.2 + 1e-6
        start = build("offset")(features, points, frames.cameras)
        assert (start.means - points.xyz).abs().max() < 0.01

    def test_own_color_starts_from_the_points(self) -> None:
        """Each of a point's k Gaussians gets its colour; higher bands and everything else are as without it."""
        frames, points, features = setting()
        configs = (OffsetConfig(per_point=2, sh_degree=1, own_color=on) for on in (False, True))
        plain, own = (OffsetHead(config, CHANNELS) for config in configs)
        for head in (plain, own):
            nn.init.zeros_(head.attributes.weight)
        before, after = (head(features, points, frames.cameras) for head in (plain, own))
        shown = 0.5 + SH_C0 * (after.sh - before.sh)[:, 0]
        torch.testing.assert_close(shown, points["color"].repeat_interleave(2, 0))
        torch.testing.assert_close(after.sh[:, 1:], before.sh[:, 1:])
        torch.testing.assert_close(after.means, before.means)

    def test_own_color_needs_colors(self) -> None:
        frames, points, features = setting()
        bare = Points(xyz=points.xyz, counts=points.counts, attributes={"pixel": points["pixel"]})
        with pytest.raises(MissingAttribute, match="color"):
            build("offset, own colour")(features, bare, frames.cameras)


class TestDepthHead:
    def rows(self) -> tuple[Cameras, Packed]:
        cameras = cameras_around((1,), dtype=torch.float64)
        return cameras, Packed(counts=(4,), attributes={"pixel": torch.tensor([0, 31, 740, 767])})

    def head(self, **options: Any) -> DepthHead:
        torch.manual_seed(0)
        return DepthHead(DepthConfig(**options), CHANNELS).double()

    def features(self, **options: Any) -> Tensor:
        generator = torch.Generator().manual_seed(2)
        return torch.randn(4, CHANNELS, generator=generator, dtype=torch.float64, **options)

    def distances(self, gaussians: Gaussians, cameras: Cameras) -> Tensor:
        return (gaussians.means - cameras.centers).norm(dim=1).view(4, -1)

    def test_centres_lie_on_their_pixel(self) -> None:
        cameras, rows = self.rows()
        gaussians = self.head(per_point=3)(self.features(), rows, cameras)
        pixels, _ = cameras.project(gaussians.means, gaussians.item)
        centre = cameras.pixel_grid().flatten(0, 1)[rows["pixel"]].repeat_interleave(3, 0)
        assert (pixels - centre).abs().max() <= 0.5

    def test_top_bins_in_order_and_shares(self) -> None:
        cameras, rows = self.rows()
        head = self.head(per_point=3, bins=8)
        features = self.features()
        gaussians = head(features, rows, cameras)
        logits, offsets = head.depth(features.relu()).chunk(2, 1)
        best = logits.softmax(1).topk(3, 1)
        place = (best.indices + offsets.sigmoid().gather(1, best.indices)) / 8
        assert torch.allclose(self.distances(gaussians, cameras), 0.2 + place * 9.8)
        share = best.values / best.values.sum(1, keepdim=True)
        opacity = gaussians.opacities.view(4, 3)
        assert torch.allclose(opacity / opacity.sum(1, keepdim=True), share)

    @pytest.mark.parametrize("per_point", [1, 3])
    @pytest.mark.parametrize("opacity", ["normalized", "mapped"])
    def test_logits_have_a_gradient(self, per_point: int, opacity: Any) -> None:
        cameras, rows = self.rows()
        head = self.head(per_point=per_point, opacity=opacity)
        gaussians = head(self.features(), rows, cameras)
        (gaussians.opacities.square().sum() + gaussians.means.square().sum()).backward()
        assert head.depth.weight.grad is not None
        assert bool(head.depth.weight.grad[: head.config.bins].any(1).all())

    def test_straight_through_pulls_towards_the_wanted_depth(self) -> None:
        cameras, rows = self.rows()
        head = self.head()
        features = self.features()
        optimizer = torch.optim.Adam(head.parameters(), 0.03)
        wanted = torch.tensor([[1.0], [2.0], [4.0], [8.0]], dtype=torch.float64)
        errors = []
        for _ in range(100):
            optimizer.zero_grad()
            error = (self.distances(head(features, rows, cameras), cameras) - wanted).square().sum()
            error.backward()
            optimizer.step()
            errors.append(error.item())
        assert min(errors) < 0.01 * errors[0]

    def test_sampling_uses_the_draws_and_evaluation_does_not(self) -> None:
        cameras, rows = self.rows()
        head = self.head(selection="sampled", per_point=2)
        low, high = (torch.full((4, 2), u, dtype=torch.float64) for u in (0.0, 1 - 1e-9))
        near, far = (self.distances(head(self.features(), rows, cameras, uniform=u), cameras) for u in (low, high))
        assert near.max() < 0.2 + 9.8 / 32 and far.min() > 10 - 9.8 / 32
        head.eval()
        first, second = (head(self.features(), rows, cameras, uniform=u).means for u in (low, high))
        assert torch.equal(first, second)

    def test_bounds_of_each_view(self) -> None:
        cameras, rows = self.rows()
        bounds = torch.tensor([[3.0, 4.0]], dtype=torch.float64)
        distance = self.distances(self.head()(self.features(), rows, cameras, bounds=bounds), cameras)
        assert distance.min() >= 3 and distance.max() <= 4

    def test_gradients_are_right(self) -> None:
        cameras, rows = self.rows()
        head = self.head(per_point=2, sh_degree=1, bins=4)
        features = self.features(requires_grad=True)

        def outputs(value: Tensor) -> tuple[Tensor, ...]:
            g = head(value, rows, cameras)
            return g.means, g.scales, g.quaternions, g.opacities, g.sh

        assert torch.autograd.gradcheck(outputs, features)


class TestFormulas:
    def test_disparity_bins(self) -> None:
        """Centres of bins 0, 8, 16, 24, 31 of 32 between 0.2 and 10 m."""
        place = (torch.tensor([0.0, 8, 16, 24, 31]) + 0.5) / 32
        depth = place_to_depth(place, 0.2, 10.0, "disparity")
        assert torch.allclose(depth, torch.tensor([0.203, 0.270, 0.404, 0.801, 5.66]), rtol=5e-3)

    def test_opacity_map(self) -> None:
        p = torch.linspace(0, 1, 11)
        assert torch.allclose(map_probability(p, 1.0), p, atol=1e-6)
        for exponent in (0.5, 2.0, 8.0):
            assert torch.allclose(map_probability(torch.tensor([0.0, 1.0]), exponent), torch.tensor([0.0, 1.0]))
        assert bool((map_probability(p[1:-1], 4.0) > p[1:-1]).all())


class TestErrors:
    def test_rows(self) -> None:
        frames, points, features = setting()
        with pytest.raises(UserError, match=r"for \d+ pixels or points, 1 items for 2 views"):
            build("offset")(features, points.regroup((len(points),)), frames.cameras)
        with pytest.raises(UserError, match="3 feature rows"):
            build("depth")(features[:3], points, frames.cameras)
        bare = Packed(counts=points.counts)
        with pytest.raises(MissingAttribute, match="no attribute 'pixel'"):
            build("depth")(features, bare, frames.cameras)

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"per_point": 0}, "per_point: 1 or more is needed, got 0"),
            ({"sh_degree": 5}, "sh_degree: 0 to 4 is allowed, got 5"),
            ({"initial_pixels": 4.0}, "scale_min and scale_max allow 0.1 to 3, got 4.0"),
            ({"near": 2.0, "far": 1.0}, "0 < near < far is needed, got 2.0 and 1.0"),
            ({"bins": 2, "per_point": 3}, "at least per_point = 3 are needed, got 2"),
        ],
    )
    def test_config(self, options: dict[str, Any], message: str) -> None:
        with pytest.raises(ConfigError, match=message):
            DepthConfig(**options)

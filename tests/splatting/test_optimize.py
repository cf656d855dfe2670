"""Gaussians as parameters: values and gradients, relocation that keeps the picture, growth, noise, first sizes."""

import math
from fractions import Fraction

import pytest
import torch
from torch.optim import Adam

from splatlearn.errors import ConfigError, MissingAttribute, UserError
from splatlearn.splatting.optimize import MOST_COPIES, ChainOptions, Splats, from_points, shared
from splatlearn.splatting.render import RenderOptions, render
from splatlearn.structures import SH_C0, Cameras, Gaussians, Points
from splatting.scenes import random_gaussians


def splats(number: int = 40, cap: int = 60, degree: int = 2, unit: float = 2.0) -> Splats:
    return Splats(random_gaussians(number, degree=1), cap=cap, degree=degree, unit=unit)


def optimizer_of(module: Splats) -> Adam:
    """Adam after a step, so that every row has moments."""
    optimizer = Adam(module.parameters(), lr=1e-3)
    for parameter in module.parameters():
        parameter.grad = torch.full_like(parameter, 0.1)
    optimizer.step()
    return optimizer


def set_opacities(module: Splats, opacities: dict[int, float]) -> None:
    with torch.no_grad():
        for row, value in opacities.items():
            module.logits[row] = torch.logit(torch.tensor(value))


def one(opacity: float, scales: tuple[float, float, float] = (0.2, 0.2, 0.2)) -> Gaussians:
    return Gaussians(
        means=torch.tensor([[0.0, 0.0, 3.0]]),
        scales=torch.tensor([scales]),
        quaternions=torch.tensor([[1.0, 0.0, 0.0, 0.0]]),
        opacities=torch.tensor([opacity]),
        sh=torch.ones(1, 1, 3),
    )


def camera(size: int = 64) -> Cameras:
    focal = 1.2 * size
    return Cameras(
        world_to_camera=torch.eye(4)[None],
        intrinsics=torch.tensor([[[focal, 0, size / 2], [0, focal, size / 2], [0, 0, 1.0]]]),
        width=size,
        height=size,
    )


class TestValues:
    def test_they_are_those_of_the_start(self):
        start = random_gaussians(40, degree=1)
        found = splats().gaussians()
        for name in ("means", "scales", "opacities"):
            torch.testing.assert_close(getattr(found, name), getattr(start, name), atol=2e-5, rtol=1e-5)
        assert torch.equal(found.sh[:, :4], start.sh)
        assert found.sh.shape == (40, 9, 3)
        assert not found.sh[:, 4:].any()
        assert found.counts == (40,)

    def test_degree(self):
        module = splats()
        assert [module.gaussians(degree).sh.shape[1] for degree in (0, 1, 2)] == [1, 4, 9]

    def test_gradients_reach_rows_in_use_alone(self):
        module = splats()
        found = module.gaussians()
        (found.means.sum() + found.scales.sum() + found.quaternions.sum() + found.sh.sum()).backward()
        module.opacities.sum().backward()
        for name, parameter in module.named_parameters():
            assert parameter.grad is not None, name
            assert bool(parameter.grad[:40].any()), name
            assert not bool(parameter.grad[40:].any()), name
        torch.testing.assert_close(module.places.grad[:40], torch.full((40, 3), 2.0))

    @pytest.mark.parametrize("number", [0, 61])
    def test_too_few_or_too_many(self, number):
        with pytest.raises(UserError, match=f"1 to 60 Gaussians, the cap; got {number}"):
            splats(number)

    def test_it_learns(self):
        target = render(random_gaussians(40, degree=1, seed=3), camera()).color
        module = splats(degree=1)
        optimizer = Adam(module.parameters(), lr=2e-2)
        errors = []
        for _ in range(60):
            optimizer.zero_grad()
            error = (render(module.gaussians(), camera()).color - target).abs().mean()
            error.backward()
            optimizer.step()
            errors.append(float(error.detach()))
        assert errors[-1] < errors[0] / 2


class TestShared:
    def test_one_copy_is_itself(self):
        opacities, shrinking = shared(torch.tensor([0.01, 0.5, 0.999]), torch.tensor([1, 1, 1]))
        torch.testing.assert_close(opacities, torch.tensor([0.01, 0.5, 0.999]))
        torch.testing.assert_close(shrinking, torch.ones(3))

    @pytest.mark.parametrize("copies", [2, 3, 7, 30, MOST_COPIES])
    @pytest.mark.parametrize("opacity", [0.02, 0.5, 0.95])
    def test_it_is_the_papers_formula(self, copies, opacity):
        """Equation 9, with its two sums."""
        after = 1 - (1 - opacity) ** (1 / copies)
        inner = (
            math.comb(i - 1, k) * (-1) ** k / math.sqrt(k + 1) * after ** (k + 1)
            for i in range(1, copies + 1)
            for k in range(i)
        )
        expected = opacity / math.fsum(inner)
        found = shared(torch.tensor([opacity]), torch.tensor([copies]))
        assert float(found[0]) == pytest.approx(after, rel=1e-5)
        assert float(found[1]) == pytest.approx(expected, rel=1e-5)

    @pytest.mark.parametrize("opacity", [1.0, 1 - 1e-6, 0.9999])
    def test_what_is_nearly_or_wholly_opaque(self, opacity):
        """As a sigmoid in float32 is from 17 on. Alternating terms of up to 1e14: exact fractions tell the sum."""
        copies = torch.arange(2, MOST_COPIES + 1)
        _, shrinking = shared(torch.full((len(copies),), opacity, dtype=torch.float64), copies)
        for number, found in zip(copies.tolist(), shrinking.tolist()):
            solid = min(opacity, 1 - 1e-6)
            after = Fraction(1 - (1 - solid) ** (1 / number))
            roots = (Fraction(math.sqrt(i)) for i in range(1, number + 1))
            terms = (math.comb(number, i) * after**i / root for i, root in enumerate(roots, 1))
            expected = solid / float(sum(term if i % 2 == 0 else -term for i, term in enumerate(terms)))
            assert found == pytest.approx(expected, rel=1e-6)

    def test_more_copies_than_the_most(self):
        opacities = torch.tensor([0.5, 0.5])
        found = shared(opacities, torch.tensor([MOST_COPIES, 500]))
        assert float(found[0][0]) == float(found[0][1])
        assert float(found[1][0]) == float(found[1][1])

    @pytest.mark.parametrize("copies", [2, 6])
    def test_the_picture_stays(self, copies):
        """Several shared ones look like the one; plain copies do not, nor those whose opacity alone is shared."""
        options = RenderOptions(low_pass=0.0, alpha_min=0.0)

        def seen(opacity: float, shrinking: float, number: int) -> torch.Tensor:
            single = one(opacity, (0.2 * shrinking,) * 3)
            repeated = Gaussians.pack([single] * number)
            return render(repeated.regroup((number,)), camera(), options=options).alpha

        opacity, shrinking = (float(value[0]) for value in shared(torch.tensor([0.8]), torch.tensor([copies])))
        target = seen(0.8, 1.0, 1)
        middle = target.max()
        errors = [
            float((seen(o, s, copies) - target).abs().mean())
            for o, s in ((opacity, shrinking), (opacity, 1.0), (0.8, 1.0))
        ]
        assert float((seen(opacity, shrinking, copies).max() - middle).abs()) < 5e-3
        assert errors[0] < errors[1] / 2 < errors[2] / 4
        assert abs(float((seen(opacity, shrinking, copies) - target).sum() / target.sum())) < 0.12


class TestRelocation:
    def test_the_dead_join_the_living(self):
        module, options = splats(40, cap=40), ChainOptions(growth=0.0)
        set_opacities(module, {3: 0.001, 17: 0.005, 20: 0.0051})
        optimizer = optimizer_of(module)
        set_opacities(module, {3: 0.001, 17: 0.0049, 20: 0.006})
        before = {name: value.clone() for name, value in module.named_parameters()}
        torch.manual_seed(0)
        assert module.relocate(optimizer, options) == 2
        changed = (module.logits != before["logits"]).nonzero().squeeze(1).tolist()
        assert {3, 17} < set(changed)
        sources = sorted(set(changed) - {3, 17})
        assert len(sources) in (1, 2)
        for row in (3, 17):
            twin = next(s for s in sources if torch.equal(module.places[s], module.places[row]))
            for name in ("quaternions", "base", "rest", "logits", "log_scales"):
                assert torch.equal(getattr(module, name)[row], getattr(module, name)[twin]), name
            assert float(module.logits[twin].detach()) < float(before["logits"][twin].detach())
        assert len(module) == 40
        self.check_memory(module, optimizer, [3, 17, *sources])

    @staticmethod
    def check_memory(module: Splats, optimizer: Adam, forgotten: list[int]) -> None:
        for name, parameter in module.named_parameters():
            for key in ("exp_avg", "exp_avg_sq"):
                rows = optimizer.state[parameter][key].flatten(1) if parameter.ndim > 1 else None
                rows = optimizer.state[parameter][key][:, None] if rows is None else rows
                kept = [row for row in range(len(rows)) if row not in forgotten]
                assert not bool(rows[forgotten].any()), (name, key)
                assert bool((rows[kept] != 0).all()), (name, key)

    def test_growth_up_to_the_cap(self):
        module = splats(40, cap=45)
        optimizer, counts = optimizer_of(module), []
        for _ in range(6):
            module.relocate(optimizer, ChainOptions(growth=0.05))
            counts.append(len(module))
        assert counts == [42, 44, 45, 45, 45, 45]
        assert bool((module.gaussians().opacities >= 0.0049).all())

    @pytest.mark.parametrize(("growth", "expected"), [(0.05, 4), (0.5, 4), (1.0, 6), (0.0, 3)])
    def test_a_few_grow_too(self, growth, expected):
        module = splats(3, cap=6)
        set_opacities(module, dict.fromkeys(range(3), 0.5))
        module.relocate(optimizer_of(module), ChainOptions(growth=growth))
        assert len(module) == expected

    def test_rows_not_in_use_are_no_source(self):
        module = splats(40, cap=60)
        with torch.no_grad():
            module.logits[40:] = 50.0
        set_opacities(module, dict.fromkeys(range(39), 0.001))
        module.relocate(optimizer_of(module), ChainOptions(growth=0.0))
        assert len(torch.unique(module.places[:40], dim=0)) == 1

    def test_all_dead(self):
        module = splats(40)
        optimizer = optimizer_of(module)
        set_opacities(module, dict.fromkeys(range(40), 0.001))
        before = module.places.clone()
        assert module.relocate(optimizer, ChainOptions()) == 0
        assert torch.equal(module.places, before)

    def test_due(self):
        options = ChainOptions(every=10, start=0.2, stop=0.8)
        assert [step + 1 for step in range(100) if options.due(step, 100)] == [20, 30, 40, 50, 60, 70, 80]

    def test_options(self):
        with pytest.raises(ConfigError, match=r"every.*got 0.*start and stop.*0\.9 and 0\.1.*dead.*got 0\.5"):
            ChainOptions(every=0, start=0.9, stop=0.1, dead=0.5)


class TestNoise:
    def test_what_shows_stays(self):
        module = splats()
        set_opacities(module, {row: 0.3 + 0.01 * row for row in range(40)} | {5: 0.01, 6: 0.001})
        before = module.places.clone()
        module.shake(1e-3, ChainOptions())
        moved = (module.places != before).any(1).nonzero().squeeze(1).tolist()
        assert moved == [5, 6]

    def test_it_fades_above_the_dead_wherever_these_are(self):
        """Rows are left out only where the noise is nothing beside that of the others."""
        for dead in (0.005, 0.1):
            module = splats()
            set_opacities(module, {row: dead + 0.1 + 0.002 * row for row in range(40)})
            before = module.places.clone()
            torch.manual_seed(0)
            module.shake(1e-3, ChainOptions(dead=dead))
            moved = (module.places != before).any(1).nonzero().squeeze(1).tolist()
            assert moved == list(range(len(moved))) and 20 <= len(moved) <= 23

    def test_its_covariance(self):
        """The displacement of a dead Gaussian has the square of its covariance, in units of the scene."""
        number, unit = 20_000, 2.0
        turned = torch.nn.functional.normalize(torch.tensor([0.8, 0.2, -0.4, 0.3]), dim=0)
        start = Gaussians(
            means=torch.zeros(number, 3),
            scales=torch.tensor([0.4, 0.1, 0.02]).repeat(number, 1),
            quaternions=turned.repeat(number, 1),
            opacities=torch.full((number,), 0.005),
            sh=torch.zeros(number, 1, 3),
        )
        module = Splats(start, cap=number, degree=0, unit=unit)
        torch.manual_seed(0)
        module.shake(1e-2, ChainOptions(noise=100.0))
        moves = (module.places.detach() / (0.5 * 1e-2 * 100.0)).double()
        from splatlearn.splatting.projection import rotations

        axes = rotations(turned[None].double())[0] * (start.scales[0].double() / unit)
        covariance = axes @ axes.T
        expected = covariance @ covariance
        found = moves.T @ moves / number
        torch.testing.assert_close(found, expected, atol=float(expected.max()) * 0.03, rtol=0)

    def test_none(self):
        module = splats()
        set_opacities(module, dict.fromkeys(range(40), 0.001))
        before = module.places.clone()
        module.shake(1e-3, ChainOptions(noise=0.0))
        module.shake(0.0, ChainOptions())
        assert torch.equal(module.places, before)


class TestFirstSizes:
    def test_widths_are_the_distance_of_neighbours(self):
        steps = torch.arange(6.0)
        xyz = torch.stack(torch.meshgrid(steps, steps, torch.zeros(1), indexing="ij"), -1).reshape(-1, 3) * 0.1
        found = from_points(Points(xyz=xyz, attributes={"color": torch.rand(36, 3)}), opacity=0.3)
        inside = (xyz[:, 0] > 0) & (xyz[:, 0] < 0.5)
        torch.testing.assert_close(found.scales[inside], torch.full((int(inside.sum()), 3), 0.1))
        torch.testing.assert_close(found.opacities, torch.full((36,), 0.3))

    def test_colours_and_given_opacities(self):
        points = Points(
            xyz=torch.rand(10, 3),
            attributes={"color": torch.rand(10, 3), "opacity": torch.linspace(0, 1, 10)[:, None]},
        )
        found = from_points(points, opacity=0.3)
        torch.testing.assert_close(0.5 + SH_C0 * found.sh[:, 0], points["color"])
        assert torch.equal(found.opacities, points["opacity"][:, 0])

    def test_points_in_one_place(self):
        found = from_points(Points(xyz=torch.zeros(5, 3), attributes={"color": torch.rand(5, 3)}), opacity=0.5)
        assert bool((found.scales > 0).all())
        assert bool(found.scales.log().isfinite().all())

    @pytest.mark.parametrize("number", [2, 3])
    def test_very_few(self, number):
        xyz = torch.arange(number)[:, None] * torch.tensor([[1.0, 0, 0]])
        found = from_points(Points(xyz=xyz, attributes={"color": torch.rand(number, 3)}), opacity=0.5)
        assert bool((found.scales >= 1).all())
        assert bool((found.scales < 2).all())

    def test_errors(self):
        with pytest.raises(UserError, match="two points or more, got 1"):
            from_points(Points(xyz=torch.zeros(1, 3), attributes={"color": torch.zeros(1, 3)}), opacity=0.5)
        with pytest.raises(MissingAttribute, match="color"):
            from_points(Points(xyz=torch.rand(5, 3)), opacity=0.5)

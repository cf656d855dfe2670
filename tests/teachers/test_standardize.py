"""Standardised features: moments, running statistics, rotation, the way back, the official DUNE and UNIC numbers."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from ranks import on_two_ranks
from splatlearn.errors import UserError
from splatlearn.teachers.hadamard import hadamard
from splatlearn.teachers.standardize import Standardizer, StandardizerConfig, momentum_at

MODES = ("none", "batch", "ema", "phi-s")


def make(mode: str, channels: int = 4) -> Standardizer:
    return Standardizer(StandardizerConfig(mode=mode), channels)


def rows(count: int = 50, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    scale, shift = torch.tensor([1.0, 5, 0.1, 2]), torch.tensor([0.0, -3, 10, 1])
    return torch.randn(count, 4, generator=generator) * scale + shift


def test_a_batch_gets_mean_0_and_deviation_1():
    out = make("batch").train()(rows())
    assert torch.allclose(out.mean(0), torch.zeros(4), atol=1e-5) and torch.allclose(out.std(0), torch.ones(4))


def test_running_statistics_are_those_of_before():
    standardizer = make("ema").train()
    assert torch.allclose(standardizer(rows(), momentum=1.0), rows(), rtol=1e-4)
    assert torch.allclose(standardizer.mean, rows().mean(0), atol=1e-5)
    out = standardizer(rows(), momentum=0.5)
    assert torch.allclose(out.std(0), torch.ones(4), rtol=1e-3)


@pytest.mark.parametrize("mode", MODES)
def test_evaluation_changes_nothing_and_can_be_undone(mode):
    standardizer = make(mode)
    standardizer.fit([rows(20), rows(30, seed=1)])
    together = torch.cat([rows(20), rows(30, seed=1)])
    assert torch.allclose(standardizer.mean, together.mean(0), atol=1e-5)
    std = together.var(0).mean().sqrt().expand(4) if mode == "phi-s" else together.std(0)
    assert torch.allclose(standardizer.std, std, rtol=1e-4)
    before = standardizer.eval().state_dict()
    out = standardizer(rows())
    assert torch.allclose(standardizer.inverse(out), rows(), atol=1e-4)
    assert all(torch.equal(value, before[name]) for name, value in standardizer.state_dict().items())


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("count", [0, 1])
def test_hardly_any_rows(mode, count):
    standardizer = make(mode).train()
    out = standardizer(rows(count))
    assert out.shape == (count, 4) and bool(out.isfinite().all())
    assert torch.equal(standardizer.mean, torch.zeros(4)) and torch.equal(standardizer.std, torch.ones(4))


@pytest.mark.parametrize("mode", MODES[1:])
def test_bf16_is_worked_out_in_float32(mode):
    standardizer = make(mode).eval()
    standardizer.fit([rows()])
    with torch.autocast("cpu", torch.bfloat16):
        out = standardizer(rows().bfloat16())
        back = standardizer.inverse(out)
    assert out.dtype == back.dtype == torch.float32
    assert torch.equal(out, standardizer(rows().bfloat16().float()))
    assert torch.allclose(back, rows().bfloat16().float(), atol=1e-4)


def test_momentum_falls_by_a_cosine():
    assert momentum_at(0) == 1
    assert momentum_at(0.5) == pytest.approx(0.5005)
    assert momentum_at(1) == pytest.approx(0.001)


@pytest.mark.parametrize("mode", ["batch", "ema"])
def test_without_momentum_training_is_evaluation(mode):
    standardizer = make(mode)
    standardizer.fit([rows()])
    expected = standardizer.eval()(rows(20, seed=1))
    assert torch.equal(standardizer.train()(rows(20, seed=1), momentum=0), expected)


def correlated(count: int, channels: int) -> torch.Tensor:
    """Float64 rows far from 0, in `channels` correlated channels of variances that differ by 10 000 and more."""
    generator = torch.Generator().manual_seed(0)
    sources = torch.randn(count, channels, generator=generator, dtype=torch.float64)
    sources = sources * torch.logspace(1, -1, channels, dtype=torch.float64)
    return (sources + sources.roll(1, 1)) * torch.logspace(0, 1, channels, dtype=torch.float64) + 30


class TestRotation:
    @pytest.mark.parametrize("channels", [4, 20, 36, 1024, 1152])
    def test_every_channel_has_variance_1_and_the_way_back_is_exact(self, channels):
        features = correlated(100, channels)
        standardizer = make("phi-s", channels).double()
        standardizer.fit([features[:30], features[30:]])
        out = standardizer(features)
        assert torch.allclose(out.mean(0), torch.zeros_like(out[0]), atol=1e-6)
        assert torch.allclose(out.var(0), torch.ones_like(out[0]), atol=1e-6)
        assert torch.allclose(standardizer.inverse(out), features, atol=1e-9)
        distances = torch.cdist(features, features, compute_mode="donot_use_mm_for_euclid_dist")
        found = torch.cdist(out, out, compute_mode="donot_use_mm_for_euclid_dist") * standardizer.std[0]
        assert torch.allclose(found, distances), "one scale for all"

    def test_the_covariance_is_hadamards_of_the_principal_variances(self):
        features = correlated(500, 12)
        standardizer = make("phi-s", 12).double()
        standardizer.fit([features])
        variances = torch.linalg.eigvalsh(features.t().cov())
        turn = hadamard(12) / 12**0.5
        expected = turn @ torch.diag(variances / variances.mean()) @ turn.t()
        assert torch.allclose(standardizer(features).t().cov(), expected, atol=1e-8)

    def test_training_changes_no_statistics_once_they_are_fitted(self):
        standardizer = make("phi-s").train()
        standardizer.fit([rows()])
        before = {name: value.clone() for name, value in standardizer.state_dict().items()}
        standardizer(rows(seed=1), momentum=1.0)
        assert all(torch.equal(value, before[name]) for name, value in standardizer.state_dict().items())
        again = make("phi-s")
        again.load_state_dict(before)
        assert torch.equal(again(rows()), standardizer(rows()))

    def test_equal_features(self):
        standardizer = make("phi-s")
        standardizer.fit([torch.full((5, 4), 3.0)])
        assert not standardizer(torch.full((5, 4), 3.0)).any()

    def test_too_few_rows(self):
        with pytest.raises(UserError, match="needs two rows of features at least to be fitted, got 1"):
            make("phi-s").fit([rows(1)])

    def test_widths_without_a_matrix(self):
        with pytest.raises(UserError, match=r"phi-s of 30 channels: no Hadamard matrix of order 30 .* take batch or"):
            make("phi-s", 30)


def fitted(features: torch.Tensor) -> dict[str, torch.Tensor]:
    found = {}
    for mode in MODES:
        standardizer = make(mode, 12).double()
        standardizer.fit([features[:5], features[5:]])
        found |= {f"{mode} {name}": value for name, value in standardizer.state_dict().items()}
        found[f"{mode} out"] = standardizer.train()(features, momentum=0.3)
        found |= {f"{mode} {name} after": value for name, value in standardizer.state_dict().items()}
    return found


def rank(number: int) -> dict[str, torch.Tensor]:
    return fitted(correlated(60, 12).split((43, 17))[number])


def test_two_ranks_equal_one():
    one, (first, second) = fitted(correlated(60, 12)), on_two_ranks(rank)
    for name, expected in one.items():
        found = torch.cat([first[name], second[name]]) if name.endswith("out") else second[name]
        torch.testing.assert_close(found, expected, atol=1e-8, rtol=1e-8, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("order", [1, 2, 4, 12, 20, 24, 28, 36, 192, 384, 768, 1024, 1152, 1280, 1408, 1536, 1664])
def test_hadamard(order):
    matrix = hadamard(order)
    assert matrix.dtype == torch.float64 and bool((matrix.abs() == 1).all())
    small = matrix.float()  # sums of so few ones are exact
    assert torch.equal(small @ small.t(), order * torch.eye(order))


@pytest.mark.parametrize("order", [0, 3, 6, 18, 1000 + 2])
def test_orders_without_a_hadamard_matrix(order):
    with pytest.raises(UserError, match=f"no Hadamard matrix of order {order} is known"):
        hadamard(order)


@pytest.mark.parametrize("case", ["student_70px_three_projectors", "student_336_grid_interpolated"])
def test_equals_dune(shared_parity: Path, case: str) -> None:
    """One case has a momentum of 0.1, the other 0: its batch does not count."""
    folder = shared_parity / "dune" / case
    momentum = json.loads((folder / "case.json").read_text())["config"]["ema_momentum"]
    stored = load_file(folder / "io.safetensors")
    weights = load_file(next(path for path in folder.glob("*.safetensors") if path.name != "io.safetensors"))
    compared = 0
    for name in [name for name in stored if name.startswith("train.mid.normalised_teacher.")]:
        teacher, kind = name.removeprefix("train.mid.normalised_teacher.").split(".")
        features = stored[f"in.teacher.{teacher}.{kind}"]
        standardizer = make("batch", features.shape[-1]).train()
        state = f"teacher_norms.{teacher}.normalizers.{kind}."
        standardizer.load_state_dict({part: weights[state + part] for part in ("mean", "std")})
        out = standardizer(features.flatten(0, -2), momentum=momentum)
        assert torch.allclose(out, stored[name].flatten(0, -2), atol=5e-4)
        for part, value in standardizer.state_dict().items():
            assert torch.allclose(
                value, stored[f"train.lowest_loss.out.teacher_norm.{teacher}.{kind}.{part}"], atol=1e-5
            )
        compared += 1
    assert compared == 4


def test_equals_unic(shared_parity: Path) -> None:
    stored = load_file(shared_parity / "unic" / "ladder_four_teachers" / "io.safetensors")
    named = [name.removeprefix("mid.normalised_teacher.") for name in stored if "mid.normalised_teacher." in name]
    for name in named:
        features = stored[f"in.teacher.{name}"].flatten(0, -2)
        standardizer = make("ema", features.shape[-1]).train()
        standardizer.load_state_dict({part: stored[f"in.stats.{name}.{part}"].flatten() for part in ("mean", "std")})
        out = standardizer(features, momentum=0.2)
        assert torch.allclose(out, stored[f"mid.normalised_teacher.{name}"].flatten(0, -2), atol=1e-5)
        for part, value in standardizer.state_dict().items():
            assert torch.allclose(value, stored[f"out.stats.{name}.{part}"].flatten(), atol=1e-5)
    assert len(named) == 8

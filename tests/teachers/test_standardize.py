"""Standardised features: moments, running statistics, the way back, and the official DUNE and UNIC numbers."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from splatlearn.teachers.standardize import Standardizer, StandardizerConfig

MODES = ("none", "batch", "ema")


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
    assert torch.allclose(standardizer.std, together.std(0), rtol=1e-4)
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


def test_bf16_is_worked_out_in_float32():
    assert make("batch").train()(rows().bfloat16()).dtype == torch.float32


def test_equals_dune(shared_parity: Path) -> None:
    folder = shared_parity / "dune" / "student_70px_three_projectors"
    stored = load_file(folder / "io.safetensors")
    weights = load_file(next(path for path in folder.glob("*.safetensors") if path.name != "io.safetensors"))
    compared = 0
    for name in [name for name in stored if name.startswith("train.mid.normalised_teacher.")]:
        teacher, kind = name.removeprefix("train.mid.normalised_teacher.").split(".")
        features = stored[f"in.teacher.{teacher}.{kind}"]
        standardizer = make("batch", features.shape[-1]).train()
        state = f"teacher_norms.{teacher}.normalizers.{kind}."
        standardizer.load_state_dict({part: weights[state + part] for part in ("mean", "std")})
        out = standardizer(features.flatten(0, -2), momentum=0.1)
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

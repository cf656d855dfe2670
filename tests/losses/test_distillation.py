"""Distillation losses: their formulas, gradients where they are awkward, and the official ScaLR loss."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from splatlearn.encoders.base import FeatureMaps
from splatlearn.errors import UserError
from splatlearn.losses.distillation import cosine_and_smooth_l1, cosine_distance, unit, unit_distance

LOSSES = (unit_distance, cosine_distance, cosine_and_smooth_l1)


@pytest.fixture
def pairs() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    student, teacher = (torch.randn(40, 6, generator=generator, dtype=torch.float64) for _ in range(2))
    return student.requires_grad_(), teacher


class TestFormulas:
    def test_distance_and_cosine(self, pairs):
        cosine = torch.nn.functional.cosine_similarity(*pairs)
        assert torch.allclose(unit_distance(*pairs), (2 - 2 * cosine).sqrt().mean())
        assert torch.allclose(cosine_distance(*pairs), (1 - cosine).mean())

    def test_the_sum_of_two(self, pairs):
        student, teacher = pairs
        smooth = torch.nn.functional.smooth_l1_loss(student, teacher)
        expected = 0.9 * cosine_distance(student, teacher) + 0.1 * smooth
        assert torch.allclose(cosine_and_smooth_l1(student, teacher, cosine=0.9, smooth_l1=0.1), expected)

    @pytest.mark.parametrize("loss", LOSSES)
    def test_weights_choose_pairs(self, loss, pairs):
        student, teacher = pairs
        weights = (torch.arange(40) % 3 == 0).double()
        assert torch.allclose(loss(student, teacher, weights), loss(student[::3], teacher[::3]))

    @pytest.mark.parametrize("loss", LOSSES)
    def test_gradients(self, loss, pairs):
        student, teacher = pairs
        assert torch.autograd.gradcheck(lambda x: loss(x, teacher), (student,))

    @pytest.mark.parametrize("loss", LOSSES)
    def test_bf16_is_worked_out_in_float32(self, loss, pairs):
        student, teacher = (value.detach().bfloat16() for value in pairs)
        with torch.autocast("cpu", torch.bfloat16):
            result = loss(student, teacher)
        assert result.dtype == torch.float32
        assert torch.allclose(result, loss(student.float(), teacher.float()))


class TestAwkward:
    @pytest.mark.parametrize("loss", LOSSES)
    def test_equal_features_have_no_loss_and_a_gradient_of_zero(self, loss, pairs):
        student = pairs[0].detach().float().requires_grad_()
        value = loss(student, student.detach().clone())
        value.backward()
        assert abs(float(value.detach())) < 1e-6
        assert bool(torch.isfinite(student.grad).all()) and float(student.grad.abs().max()) < 1e-6

    def test_the_distance_pulls_with_one_force_from_near_and_far(self):
        for gap in (1e-1, 1e-3):
            student = torch.tensor([[1.0, gap]], dtype=torch.float64, requires_grad=True)
            unit_distance(student, torch.tensor([[1.0, 0.0]], dtype=torch.float64)).backward()
            assert float(student.grad.norm()) == pytest.approx(1, abs=0.02)

    @pytest.mark.parametrize("loss", LOSSES)
    @pytest.mark.parametrize("zero", ["student", "teacher"])
    def test_features_without_direction(self, loss, zero, pairs):
        student, teacher = (value.detach().clone() for value in pairs)
        (student if zero == "student" else teacher)[0] = 0
        student.requires_grad_()
        loss(student, teacher).backward()
        assert float(student.grad.abs().max()) < 10
        assert not unit(torch.zeros(2, 3)).any()

    @pytest.mark.parametrize("loss", LOSSES)
    def test_no_pairs(self, loss):
        student = torch.zeros(0, 5, requires_grad=True)
        value = loss(student, torch.zeros(0, 5))
        value.backward()
        assert float(value.detach()) == 0

    @pytest.mark.parametrize("loss", LOSSES)
    def test_nan_of_a_teacher_is_not_hidden(self, loss, pairs):
        student, teacher = pairs
        teacher[3, 2] = torch.nan
        assert bool(loss(student, teacher).isnan())

    @pytest.mark.parametrize("loss", LOSSES)
    def test_the_teacher_gets_no_gradient(self, loss, pairs):
        student, teacher = pairs
        loss(student, teacher.requires_grad_()).backward()
        assert teacher.grad is None and student.grad is not None

    @pytest.mark.parametrize("loss", LOSSES)
    def test_other_widths(self, loss):
        with pytest.raises(UserError, match=r"got \(3, 4\) of the student and \(3, 5\) of the teacher"):
            loss(torch.zeros(3, 4), torch.zeros(3, 5))


@pytest.mark.parametrize("case", ["main_two_scans", "plus_two_scans"])
def test_equals_the_official_loss(case: str, shared_parity: Path) -> None:
    """From coarse teacher maps: read out by the corner rule, compared, and back to the student's features."""
    stored = load_file(shared_parity / "scalr_loss" / case / "io.safetensors")
    student = stored["in.point_features"].clone().requires_grad_()
    coarse, full = stored["in.teacher_coarse"], stored["mid.teacher_full"]
    maps = FeatureMaps(levels=(coarse,), summary=coarse.mean((2, 3)))
    size, predicted, expected = (full.shape[3], full.shape[2]), [], []
    for scan in range(2):
        pairs = stored[f"in.pairing_images{scan}"]
        pixels = pairs[:, [2, 1]].float()
        read = maps.at(pixels, torch.full((len(pairs),), scan), size, corners=True)
        assert torch.allclose(read, full[scan, :, pairs[:, 1], pairs[:, 2]].t(), atol=1e-5, rtol=1e-4)
        predicted.append(student[scan].t()[stored[f"in.pairing_points{scan}"]])
        expected.append(read)
    loss = unit_distance(torch.cat(predicted), torch.cat(expected))
    loss.backward()
    assert torch.allclose(loss, stored["out.loss"][0], atol=1e-6)
    assert torch.allclose(student.grad, stored["grad.in.point_features"], atol=1e-7, rtol=1e-4)

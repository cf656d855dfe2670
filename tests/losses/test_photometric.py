"""MSE, PSNR and SSIM against closed forms, torchmetrics and stored numbers."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torchmetrics.functional.image import structural_similarity_index_measure

from splatlearn.errors import UserError
from splatlearn.losses.photometric import mse, psnr, ssim, ssim_map


@pytest.fixture
def pictures() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    first = torch.rand(2, 3, 14, 18, generator=generator, dtype=torch.float64)
    second = first + 0.1 * torch.randn(first.shape, generator=generator, dtype=torch.float64)
    return first, second


class TestMeanSquaredError:
    def test_known_value(self) -> None:
        assert mse(torch.full((1, 3, 2, 2), 0.5), torch.zeros(1, 3, 2, 2)).item() == pytest.approx(0.25)

    def test_weights_choose_pixels(self) -> None:
        prediction, weights = torch.zeros(1, 3, 1, 2), torch.tensor([[[[1.0, 0.0]]]])
        prediction[..., 0], prediction[..., 1] = 1.0, 9.0
        assert mse(prediction, torch.zeros_like(prediction), weights).item() == pytest.approx(1.0)

    def test_gradient(self, pictures) -> None:
        first, second = pictures
        first = first[:, :, :2, :2].clone().requires_grad_()
        assert torch.autograd.gradcheck(lambda x: mse(x, second[:, :, :2, :2]), first)

    def test_shapes_must_agree(self) -> None:
        with pytest.raises(UserError, match=r"differ in shape: \(1, 3, 2, 2\) and \(1, 3, 2, 3\)"):
            mse(torch.zeros(1, 3, 2, 2), torch.zeros(1, 3, 2, 3))


class TestPeakSignalToNoise:
    def test_one_value_a_view(self) -> None:
        prediction = torch.zeros(2, 3, 4, 4)
        prediction[0], prediction[1] = 0.1, 1.0
        values = psnr(prediction, torch.zeros_like(prediction))
        assert torch.allclose(values, torch.tensor([20.0, 0.0]), atol=1e-5)

    def test_equal_pictures_are_finite(self) -> None:
        assert psnr(torch.ones(1, 3, 2, 2), torch.ones(1, 3, 2, 2)).item() == 100.0


class TestStructuralSimilarity:
    def test_equal_pictures(self, pictures) -> None:
        assert ssim(pictures[0], pictures[0]).item() == pytest.approx(1.0)

    def test_inside_agrees_with_torchmetrics(self, pictures) -> None:
        first, second = pictures
        _, expected = structural_similarity_index_measure(
            first, second, data_range=1.0, sigma=1.5, reduction="none", return_full_image=True
        )
        inside = (slice(None), slice(None), slice(5, -5), slice(5, -5))  # borders are padded otherwise there
        assert torch.allclose(ssim_map(first, second)[inside], torch.as_tensor(expected)[inside], atol=1e-6)

    @pytest.mark.parametrize("name", ["object_level_sh1", "scene_level_sh1"])
    def test_stored_numbers(self, shared_parity: Path, name: str) -> None:
        folder = shared_parity / "unipre3d" / name
        stored = load_file(folder / "io.safetensors")
        assert "ssim" in json.dumps(json.loads((folder / "case.json").read_text())["tensors"])
        rendered = stored["in.rendered"].double().requires_grad_()
        value = ssim(rendered, stored["in.gt"].double())
        assert value.item() == pytest.approx(stored["out.ssim"].item(), abs=1e-6)
        value.backward()
        assert rendered.grad is not None
        assert torch.allclose(rendered.grad, stored["grad.ssim.rendered"].double(), atol=1e-7)

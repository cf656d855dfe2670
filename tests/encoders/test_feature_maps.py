"""Reading maps at pixels: equal to upsampling them and looking there, without the upsampled map."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.nn.functional import interpolate

from splatlearn.encoders.base import FeatureMaps
from splatlearn.errors import UserError

PATCH = 14
PEAK = """
import resource, torch
from splatlearn.encoders.base import FeatureMaps
torch.set_num_threads(1)
maps = FeatureMaps(levels=(torch.randn(1, 1024, 32, 64),), summary=torch.zeros(1, 1024))
pixels, view = torch.rand(20000, 2) * torch.tensor([896.0, 448.0]), torch.zeros(20000, dtype=torch.int64)
maps.at(pixels[:10], view[:10], (896, 448), corners=True)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
read = maps.at(pixels, view, (896, 448), corners=True)
print(read.shape, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)
"""


def make(views: int = 3, high: int = 4, wide: int = 7, dtype: torch.dtype = torch.float32) -> FeatureMaps:
    generator = torch.Generator().manual_seed(0)
    levels = tuple(torch.randn(views, 5, high, wide, generator=generator, dtype=torch.float64) for _ in range(2))
    return FeatureMaps(levels=tuple(level.to(dtype) for level in levels), summary=levels[-1].mean((2, 3)).to(dtype))


def all_pixels(views: int, size: tuple[int, int]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Number of view, row and column of every pixel."""
    view, row, column = torch.meshgrid(torch.arange(views), torch.arange(size[1]), torch.arange(size[0]), indexing="ij")
    return view.flatten(), row.flatten(), column.flatten()


@pytest.mark.parametrize("corners", [False, True])
@pytest.mark.parametrize("level", [0, -1])
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 2e-5), (torch.bfloat16, 2e-2)]
)
def test_equals_upsampling_and_indexing(corners, level, dtype, tolerance):
    maps, size = make(dtype=dtype), (7 * PATCH, 4 * PATCH)
    view, row, column = all_pixels(3, size)
    dense = interpolate(maps.levels[level].double(), scale_factor=PATCH, mode="bilinear", align_corners=corners)
    pixels = torch.stack([column, row], 1).to(torch.promote_types(dtype, torch.float32)) + (0 if corners else 0.5)
    read = maps.at(pixels, view, size, corners=corners, level=level)
    assert read.dtype == dtype
    assert torch.allclose(read.double(), dense[view, :, row, column], atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("corners", [False, True])
def test_beyond_the_outermost_tokens_the_nearest_counts(corners):
    maps, size = make(dtype=torch.float64), (98, 56)
    corner = torch.tensor([[-3.0, -1.0], [98.0, 56.0], [98.0, 0.0], [0.0, 30.0]], dtype=torch.float64)
    view = torch.tensor([0, 1, 2, 2])
    read = maps.at(corner, view, size, corners=corners)
    last = maps.levels[-1]
    assert torch.equal(read[:3], torch.stack([last[0, :, 0, 0], last[1, :, -1, -1], last[2, :, 0, -1]]))


def test_at_the_middle_of_a_patch_is_its_token():
    maps = make(dtype=torch.float64)
    read = maps.at(torch.tensor([[2.5, 1.5]], dtype=torch.float64) * PATCH, torch.tensor([1]), (98, 56))
    assert torch.allclose(read[0], maps.levels[-1][1, :, 1, 2])


def test_the_image_may_have_any_size():
    maps = make(dtype=torch.float64)
    pixels, view = torch.rand(20, 2, dtype=torch.float64) * 50, torch.arange(20) % 3
    scale = torch.tensor([640 / 98, 480 / 56], dtype=torch.float64)
    assert torch.allclose(maps.at(pixels, view, (98, 56)), maps.at(pixels * scale, view, (640, 480)))


@pytest.mark.parametrize("corners", [False, True])
def test_one_token_and_no_pixels(corners):
    maps = make(high=1, wide=1)
    read = maps.at(torch.rand(6, 2), torch.arange(6) % 3, (1, 1), corners=corners)
    assert torch.allclose(read, maps.levels[-1][torch.arange(6) % 3, :, 0, 0])
    assert maps.at(torch.zeros(0, 2), torch.zeros(0, dtype=torch.int64), (98, 56), corners=corners).shape == (0, 5)


@pytest.mark.parametrize("corners", [False, True])
def test_gradients_reach_maps_and_pixels(corners):
    level = make(dtype=torch.float64).levels[0].requires_grad_()
    pixels = (torch.rand(9, 2, dtype=torch.float64) * torch.tensor([97.0, 55.0])).requires_grad_()
    view = torch.arange(9) % 3

    def read(level, pixels):
        return FeatureMaps(levels=(level,), summary=level.mean((2, 3))).at(pixels, view, (98, 56), corners=corners)

    assert torch.autograd.gradcheck(read, (level, pixels))


def test_pixels_without_a_view():
    with pytest.raises(UserError, match=r"\(M 2\) pixels of \(M\) views expected"):
        make().at(torch.zeros(4, 2), torch.zeros(3, dtype=torch.int64), (98, 56))


def test_no_dense_map_is_made():
    """ScaLR+'s image: 448 x 896 pixels of 1024 channels would be 1.6 GB; 20 000 points take 80 MB."""
    source = str(Path(__file__).parents[2] / "src")
    environment = {**os.environ, "PYTHONPATH": source}
    done = subprocess.run([sys.executable, "-c", PEAK], capture_output=True, text=True, check=True, env=environment)
    shape, _, megabytes = done.stdout.strip().rpartition(" ")
    assert shape == "torch.Size([20000, 1024])"
    assert float(megabytes) < 300

"""The `cpu` backend against the float64 reference, and what it promises about threads and processes."""

import subprocess
import sys
import threading
from dataclasses import replace

import pytest
import torch
from torch.utils.data import DataLoader

from splatlearn.splatting import RenderOptions, render
from splatting.comparison import assert_agree
from splatting.scenes import INPUTS, differentiate, drawn, random_cameras, random_gaussians, relative_error

CPU, REFERENCE = RenderOptions(backend="cpu"), RenderOptions(backend="reference")
LAYERS = ("color", "depth", "alpha")


def assert_same_gradients(gaussians, cameras, **changes) -> None:
    seen, gradients = differentiate(gaussians, cameras, replace(CPU, **changes), torch.float32)
    expected, oracle = differentiate(gaussians, cameras, replace(REFERENCE, **changes), torch.float64)
    errors = {name: relative_error(getattr(seen, name), getattr(expected, name)) for name in LAYERS}
    errors |= {name: relative_error(gradients[name], oracle[name]) for name in INPUTS}
    assert all(error < 1e-4 for error in errors.values()), errors


@pytest.mark.parametrize("degree", range(5))
def test_gradients_of_every_input(degree):
    assert_same_gradients(random_gaussians(120, degree=degree), random_cameras(2))


def test_gradients_of_items_that_share_nothing():
    assert_same_gradients(random_gaussians(60, items=2, degree=1, seed=4), random_cameras(2, 21, 19, items=2))


def test_gradients_without_cut_and_stop():
    cloud, cameras = random_gaussians(60, seed=5), random_cameras(1)
    assert_same_gradients(cloud, cameras, alpha_min=0.0, transmittance_min=0.0, low_pass=0.0)


def test_gradients_through_background_and_normalized_depth():
    changes = {"background": (0.2, 0.5, 1.0), "depth": "normalized", "transmittance_min": 0.05, "near": 2.0}
    assert_same_gradients(random_gaussians(80, seed=6), random_cameras(1), **changes)


def test_gradients_of_needles_and_of_gaussians_far_outside():
    cloud, cameras = random_gaussians(100, degree=0, seed=7), random_cameras(2)
    with torch.no_grad():
        cloud.means[:, :2].mul_(3)
        cloud.scales[:, 0].mul_(20)
        cloud.scales[:, 1].mul_(0.02)
    assert_same_gradients(cloud, cameras)


def test_only_color_is_differentiated():
    tensors = random_gaussians(50), random_cameras(1)
    cloud = replace(tensors[0], means=tensors[0].means.clone().requires_grad_())
    render(cloud, tensors[1], options=CPU).color.sum().backward()
    assert cloud.means.grad is not None and cloud.means.grad.any()


def test_pictures_agree_at_the_size_of_a_training_view():
    cloud, cameras = random_gaussians(1500, degree=2, seed=8), random_cameras(1, 100, 76)
    cloud = replace(cloud, scales=cloud.scales * 0.3)
    with torch.no_grad():
        seen, expected = (render(cloud, cameras, options=options) for options in (CPU, REFERENCE))
    assert_agree(seen.color, expected.color, expected.alpha)
    assert_agree(seen.depth, expected.depth, expected.alpha)
    assert_agree(seen.alpha, expected.alpha, expected.alpha)


def test_inputs_need_not_be_contiguous():
    cloud, cameras = random_gaussians(40, degree=1), random_cameras(1)
    strided = replace(
        cloud, means=cloud.means.T.contiguous().T, sh=cloud.sh.transpose(1, 2).contiguous().transpose(1, 2)
    )
    assert torch.equal(render(cloud, cameras).color, render(strided, cameras).color)


def test_python_threads_may_render_at_once():
    cloud, cameras = random_gaussians(300), random_cameras(2)
    expected, found = render(cloud, cameras, options=CPU).color, []

    def work() -> None:
        found.extend(render(cloud, cameras, options=CPU).color for _ in range(5))

    workers = [threading.Thread(target=work) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert len(found) == 20 and all(torch.equal(color, expected) for color in found)


def test_loader_workers_may_render():
    """Two of them and this process at once."""
    options = {"collate_fn": drawn, "num_workers": 2, "multiprocessing_context": "spawn"}
    found = list(DataLoader([3, 4], **options))  # pyright: ignore[reportArgumentType]
    assert all(torch.equal(color, drawn([seed])) for color, seed in zip(found, (3, 4), strict=True))


def test_numba_is_imported_by_the_first_render_only():
    code = "import sys, splatlearn, splatlearn.splatting; sys.exit('numba' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], env={"PYTHONPATH": ":".join(sys.path)}).returncode == 0


def test_gradients_of_antialiased_pictures():
    cloud, cameras = random_gaussians(120, degree=0, seed=8), random_cameras(2)
    with torch.no_grad():
        cloud.scales.mul_(0.3)
    assert_same_gradients(cloud, cameras, antialiased=True)


def test_antialiased_footprints_smaller_than_a_pixel_fade():
    cloud, cameras = random_gaussians(200, degree=0, seed=8), random_cameras(1)
    small = replace(cloud, scales=cloud.scales * 1e-3)
    soft, sharp = (render(small, cameras, options=replace(CPU, antialiased=on)).alpha.sum() for on in (True, False))
    assert soft < 0.1 * sharp

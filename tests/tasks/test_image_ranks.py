"""Probes of images on two ranks: gradients and statistics are those of one process with both images."""

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from ranks import on_two_ranks
from splatlearn.data.scene import Source
from splatlearn.encoders.base import ImageEncoder
from splatlearn.engine.trainable import Progress
from splatlearn.tasks.encoders import resolve_encoder
from splatlearn.tasks.image_depth import ImageDepth, ImageDepthConfig
from splatlearn.tasks.image_segmentation import ImageSegmentation, ImageSegmentationConfig
from splatlearn.tasks.shots import Shot

TASKS = {
    "depth": (ImageDepth, ImageDepthConfig(tokens=5, bins=8, views=4)),
    "segmentation": (ImageSegmentation, ImageSegmentationConfig(tokens=5, rows=50, views=4)),
}


def pull(rank: int | None) -> dict[str, Tensor]:
    """Gradients and statistics after a step; of a rank's image, or of both."""
    found = {}
    for name, (task, config) in TASKS.items():
        torch.manual_seed(0)
        encoder = resolve_encoder("raw", kind=ImageEncoder).encoder
        model = task(config, encoder=encoder, source=Source(name="rooms.tiny")).train()
        scenes = model.data.scenes("train")["all"]
        shots = [model.data.sample(scene, np.random.default_rng(i)) for i, scene in enumerate(scenes[:2])]
        step = model(Shot.pack(shots if rank is None else [shots[rank]]), Progress(0, 1))
        step.losses["probe"].backward()
        for key, parameter in model.named_parameters():
            if parameter.grad is not None:
                if rank is not None:
                    dist.all_reduce(parameter.grad)
                    parameter.grad /= 2
                found[f"{name}: gradient of {key}"] = parameter.grad
        found |= {f"{name}: {key}": value for key, value in model.named_buffers()}
        found[f"{name}: loss"] = step.losses["probe"]
    return {key: value.detach() for key, value in found.items()}


def test_two_ranks_equal_one():
    expected = pull(None)
    assert any("gradient" in key for key in expected)
    for found in on_two_ranks(pull):
        assert found.keys() == expected.keys()
        for key, value in expected.items():
            assert torch.allclose(found[key].double(), value.double(), rtol=1e-4, atol=1e-6), key

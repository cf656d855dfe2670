"""Convolutional ImageNet networks as teachers, from a file of weights: for machines without a vision transformer.

Strided convolutions look at the first pixel of each patch, not at its middle; images are padded by half a patch, so
that a token stands for the middle of its patch, within half a pixel. Legend: V views, C channels, h w tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from splatlearn import registry
from splatlearn.config import require
from splatlearn.encoders.base import FeatureMaps
from splatlearn.encoders.hub import find_weights
from splatlearn.encoders.layouts import Layout, Rule
from splatlearn.encoders.weights import load_weights
from splatlearn.errors import ConfigError
from splatlearn.teachers.base import RANDOM, Teacher, TeacherInfo, tensors_digest
from splatlearn.teachers.networks import MobileNetV2, ResNet50V2, SqueezeNet, Stages


@dataclass(frozen=True, kw_only=True)
class ConvolutionalConfig:
    """A convolutional network.

    Args:
        weights: a file, npz, safetensors or what `torch.save` wrote; `random` for weights that were never trained,
            which has to be asked for.
        layers: which stages give the levels, shallow to deep, from 0; negative ones count from the end. The last by
            default. Each further one costs a pass of its own.
        width: of every layer, as a share of the published network's.
        seed: of random weights.
    """

    weights: str = ""
    layers: tuple[int, ...] = (-1,)
    width: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        require(
            {
                "layers: name one at least": len(self.layers) > 0,
                f"width: more than 0 and at most 1, got {self.width}": 0 < self.width <= 1,
            }
        )


def _mxnet_layout() -> Layout:
    """ResNet-50 v2 of the ONNX model zoo, exported from MXNet: numbers run through a stage, in the order of use."""
    norms = {"batchnorm0_": "input_norm.", "batchnorm1_": "stem_norm.", "stage4_batchnorm0_": "final_norm."}
    rules: list[Rule] = [("conv0_weight", "stem.weight", None)]
    for stage in range(3):
        rules.append((rf"stage{stage + 1}_conv(\d+)_weight", rf"stages.{stage}.convs.\1.weight", None))
        norms[rf"stage{stage + 1}_batchnorm(?P<number>\d+)_"] = rf"stages.{stage}.norms.\g<number>."
    for theirs, ours in norms.items():
        rules += [(f"{theirs}gamma", f"{ours}weight", None), (f"{theirs}beta", f"{ours}bias", None)]
        rules.append((rf"{theirs}(?P<moment>running_\w+)", rf"{ours}\g<moment>", None))
    return Layout(tuple(rules))


class ConvolutionalTeacher(Teacher):
    """Reads `Stages` as token grids. Subclasses name the network."""

    make: ClassVar[Any]
    title: ClassVar[str]
    layout: ClassVar[Layout] = Layout()

    def __init__(self, config: ConvolutionalConfig) -> None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            network: Stages = self.make(config.width)
        origin = {"licence": "none", "source": RANDOM}
        if config.weights != RANDOM:
            file = find_weights(
                config.weights,
                "",
                need=f"teacher {self.title} needs its weights",
                advice="Name a file of them (the teacher's option weights), or ask for random weights",
            )
            load_weights(network, file.path, self.layout)
            origin = {"licence": file.licence, "source": file.source, "digest": file.digest}
        origin.setdefault("digest", tensors_digest(network))
        network.to(memory_format=torch.channels_last)  # MobileNetV2 takes two thirds of the time on a CPU
        self._layers = _numbers(config.layers, len(network.strides))
        info = TeacherInfo(
            channels=tuple(network.widths[layer] for layer in self._layers),
            patch=network.strides[self._layers[-1]],
            has_summary=False,
            **origin,
        )
        super().__init__(config, network, info)

    def look(self, pixels: Tensor) -> FeatureMaps:
        """Features after the chosen stages; the summary is their mean."""
        levels = tuple(self._level(pixels, layer) for layer in self._layers)
        return FeatureMaps(levels=levels, summary=levels[-1].mean((2, 3)))

    def _level(self, pixels: Tensor, layer: int) -> Tensor:
        """Padded by half a patch on each side, the second feature of a padded network stands in the first patch."""
        half = self.network.strides[layer] // 2
        before = half if self.network.padded else half - 1
        found = self.network(functional.pad(pixels, (before, half, before, half), mode="replicate"), layer)
        return found[:, :, 1:, 1:] if self.network.padded else found


def _numbers(layers: Sequence[int], count: int) -> list[int]:
    """Numbers of the layers from 0, each once, shallow to deep."""
    wrong = [layer for layer in layers if not -count <= layer < count]
    if wrong:
        raise ConfigError(f"layers: {wrong[0]} is none of the {count} there are, 0 to {count - 1} or -{count} to -1")
    return sorted({layer % count for layer in layers})


PRESETS = {"default": {}, "tiny": {"weights": RANDOM, "width": 0.125}}


@registry.teachers.register("resnet50v2", ConvolutionalConfig, PRESETS)
class ResNet50V2Teacher(ConvolutionalTeacher):
    """ResNet-50 v2 without its last stage (1024 channels, stride 16), weights of the ONNX model zoo."""

    make, title, layout = ResNet50V2, "resnet50v2", _mxnet_layout()


@registry.teachers.register("mobilenetv2", ConvolutionalConfig, PRESETS)
class MobileNetV2Teacher(ConvolutionalTeacher):
    """MobileNetV2 with folded norms (1280 channels, stride 32)."""

    make, title = MobileNetV2, "mobilenetv2"


@registry.teachers.register("squeezenet", ConvolutionalConfig, PRESETS)
class SqueezeNetTeacher(ConvolutionalTeacher):
    """SqueezeNet 1.1 (512 channels, stride 16)."""

    make, title = SqueezeNet, "squeezenet"

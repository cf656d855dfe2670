"""Image models of timm as teachers: DINOv2, DINOv3, SigLIP 2, PE, and any other that gives intermediate features.

Legend: V views, C channels, h w tokens.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import timm
import torch
from timm.models import PretrainedCfg
from torch import Tensor

from splatlearn import registry
from splatlearn.config import require
from splatlearn.encoders.base import FeatureMaps
from splatlearn.encoders.hub import find_weights
from splatlearn.encoders.weights import read_weights
from splatlearn.errors import BadData, ConfigError, UserError, nearest
from splatlearn.teachers.base import RANDOM, Teacher, TeacherInfo, tensors_digest

MODELS = {
    "dinov2-s": "vit_small_patch14_dinov2.lvd142m",
    "dinov2-b": "vit_base_patch14_dinov2.lvd142m",
    "dinov2-l": "vit_large_patch14_dinov2.lvd142m",
    "dinov2-s-reg": "vit_small_patch14_reg4_dinov2.lvd142m",
    "dinov2-b-reg": "vit_base_patch14_reg4_dinov2.lvd142m",
    "dinov2-l-reg": "vit_large_patch14_reg4_dinov2.lvd142m",
    "dinov3-s": "vit_small_patch16_dinov3.lvd1689m",
    "dinov3-b": "vit_base_patch16_dinov3.lvd1689m",
    "dinov3-l": "vit_large_patch16_dinov3.lvd1689m",
    "siglip2-b": "vit_base_patch16_siglip_512.v2_webli",
    "siglip2-l": "vit_large_patch16_siglip_512.v2_webli",
    "siglip2-so400m": "vit_so400m_patch16_siglip_512.v2_webli",
    "pe-spatial-s": "vit_pe_spatial_small_patch16_512.fb",
    "pe-spatial-b": "vit_pe_spatial_base_patch16_512.fb",
    "pe-spatial-l": "vit_pe_spatial_large_patch14_448.fb",
    "resnet50": "resnet50.tv_in1k",
}
"""Short names of published models, as timm calls them."""
TINY = {
    "model": "vit_small_patch14_reg4_dinov2.lvd142m",
    "weights": RANDOM,
    "arguments": {"embed_dim": 32, "depth": 2, "num_heads": 2, "img_size": 56},
}
"""A DINOv2 with registers in miniature, never trained."""


@dataclass(frozen=True, kw_only=True)
class TimmConfig:
    """An image model of timm.

    Args:
        model: timm's name, with the tag of its weights: `timm.list_pretrained()`.
        weights: a file (safetensors, or what `torch.save` wrote, in timm's or the publisher's layout); empty for the
            Hugging Face cache, then the hub; `random` for weights that were never trained, which has to be asked for.
        layers: which blocks (of a convolutional network, stages) give the levels, shallow to deep, from 0; negative
            ones count from the end. The last block by default.
        norm: whether the network's final norm follows, as its publishers mean it; ScaLR takes DINOv2 without (its
            code). Convolutional networks have none.
        arguments: of the model's constructor, on top of timm's: a smaller `depth`, say.
        seed: of random weights.
    """

    model: str = MODELS["dinov2-s"]
    weights: str = ""
    layers: tuple[int, ...] = (-1,)
    norm: bool = True
    arguments: dict[str, Any] = field(default_factory=dict)
    seed: int = 0

    def __post_init__(self) -> None:
        require({"layers: name one at least": len(self.layers) > 0})
        if not timm.is_model(self.model.partition(".")[0]):
            known = timm.list_models()
            raise ConfigError(f"model: timm has no {self.model!r}{nearest(self.model, known)}")


@registry.teachers.register(
    "timm", TimmConfig, {**{name: {"model": model} for name, model in MODELS.items()}, "tiny": TINY}
)
class TimmTeacher(Teacher):
    """Image models of timm: DINOv2, DINOv3, SigLIP 2, PE, ResNets."""

    def __init__(self, config: TimmConfig) -> None:
        network, published, origin = _load(config)
        features: list[Mapping[str, Any]] = list(network.feature_info)  # one entry a block, or a stage
        self._layers = sorted({_layer(layer, len(features)) for layer in config.layers})
        self._prefix = int(getattr(network, "num_prefix_tokens", 0))
        self._class_token = self._prefix > 0 and getattr(network, "cls_token", None) is not None
        info = TeacherInfo(
            channels=tuple(features[layer]["num_chs"] for layer in self._layers),
            patch=features[self._layers[-1]]["reduction"],
            has_summary=self._class_token,
            **origin,
        )
        super().__init__(config, network, info, published.mean, published.std)

    def look(self, pixels: Tensor) -> FeatureMaps:
        """Token grids of the chosen blocks; class token and registers are dropped, the former is the summary."""
        prefix = {"return_prefix_tokens": True} if self._prefix else {}
        found = self.network.forward_intermediates(
            pixels, indices=self._layers, norm=self.config.norm, stop_early=True, intermediates_only=True, **prefix
        )
        levels = tuple(level for level, _ in found) if self._prefix else tuple(found)
        summary = found[-1][1][:, 0] if self._class_token else levels[-1].mean((2, 3))
        return FeatureMaps(levels=levels, summary=summary)


def _load(config: TimmConfig) -> tuple[Any, PretrainedCfg, dict[str, str]]:
    """The model with its weights, what timm says of them, and their licence, source and digest."""
    published = _published(config.model)
    if config.weights == RANDOM:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            network = _create(config)
        return network, published, {"licence": "none", "source": RANDOM, "digest": tensors_digest(network)}
    file = find_weights(
        config.weights,
        published.hf_hub_id or "",
        need=f"teacher {config.model} needs its weights",
        advice="Name a file of them (the teacher's option weights), run once with a network, or ask for random weights",
        licence=published.license or "unknown",
        filename=published.hf_hub_filename or "model.safetensors",
    )
    state = read_weights(file.path)
    if not state:
        raise BadData(f"weights {file.path}: it holds no tensors")
    try:
        network = _create(config, pretrained=True, pretrained_cfg_overlay={"state_dict": state})
    except (RuntimeError, KeyError) as error:
        raise UserError(f"weights {file.path} do not fit {config.model}: {error}") from error
    return network, published, {"licence": file.licence, "source": file.source, "digest": file.digest}


def _published(model: str) -> PretrainedCfg:
    try:
        published = timm.models.get_pretrained_cfg(model)
    except RuntimeError:
        published = None  # of another tag
    if published is None:
        known = timm.list_pretrained(f"{model.partition('.')[0]}.*")
        raise ConfigError(f"model: timm knows no weights {model!r} (known: {', '.join(known) or 'none'})")
    return published


def _create(config: TimmConfig, **settings: Any) -> Any:
    """The model, for images of any size where that has to be asked for (transformers)."""
    given = {**config.arguments, **settings}
    try:
        return timm.create_model(config.model, dynamic_img_size=True, **given)
    except TypeError:
        pass  # a convolutional network takes any size
    try:
        return timm.create_model(config.model, **given)
    except TypeError as error:
        raise ConfigError(f"{config.model}: these arguments do not fit: {error}") from error


def _layer(layer: int, count: int) -> int:
    """The number of a layer from 0."""
    if not -count <= layer < count:
        raise ConfigError(f"layers: {layer} is none of the {count} there are, 0 to {count - 1} or -{count} to -1")
    return layer % count

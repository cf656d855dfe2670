"""Reads a pixelSplat reference case into this library's conventions."""

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional

from splatlearn.heads.attention import ImageAttentionConfig
from splatlearn.heads.epipolar import EpipolarConfig, EpipolarTransformer
from splatlearn.heads.rotations import harmonic_rotations
from splatlearn.structures import Cameras, Gaussians

CASES = ("two_views_sampled", "three_views_deterministic_view_embedding")
LAYER = "transformer.layers."


def close(actual: Tensor, expected: Tensor, name: str = "") -> None:
    """The case's own float64 tolerance: 1e-5 + 2e-5 of the largest magnitude."""
    bound = 1e-5 + 2e-5 * float(expected.abs().max())
    error = float((actual.detach() - expected).abs().max())
    assert error <= bound, f"{name}: largest difference {error:.2e}, allowed {bound:.2e}"


@dataclass
class Case:
    """One stored case in float64; views are flattened over the batch as packed items."""

    folder: Path

    @cached_property
    def config(self) -> dict[str, Any]:
        return json.loads((self.folder / "case.json").read_text())["config"]

    @cached_property
    def tensors(self) -> dict[str, Tensor]:
        return self._load("io.safetensors")

    @cached_property
    def weights(self) -> dict[str, Tensor]:
        return self._load("weights.safetensors")

    def _load(self, name: str) -> dict[str, Tensor]:
        stored = load_file(self.folder / name)
        return {key: value.double() if value.is_floating_point() else value for key, value in stored.items()}

    def __getitem__(self, name: str) -> Tensor:
        return self.tensors[name]

    def views(self, name: str) -> Tensor:
        """A tensor (B V ...) as (B*V ...)."""
        return self[name].flatten(0, 1)

    @property
    def cameras(self) -> Cameras:
        width, height = self.config["width"], self.config["height"]
        size = torch.tensor([width, height, 1.0], dtype=torch.float64)
        return Cameras(
            world_to_camera=torch.linalg.inv(self.views("in.extrinsics")),
            intrinsics=self.views("in.intrinsics") * size[:, None],
            width=width,
            height=height,
            counts=(self.config["views"],) * self.config["batch"],
        )

    @property
    def bounds(self) -> Tensor:
        return torch.stack([self.views("in.near"), self.views("in.far")], 1)

    @property
    def order(self) -> Tensor:
        """A view order that gives the stored embedding of every (view, other view)."""
        embedding, views = self["in.view_permutation"].tolist(), self.config["views"]
        order = [0, 1, 2] if embedding == [0, 1] else [2, 1, 0]
        return torch.tensor(order[:views] * self.config["batch"])

    def transformer(self) -> EpipolarTransformer:
        """Our transformer with the stored weights."""
        sizes, image = (
            self.config["epipolar_transformer"],
            self.config["epipolar_transformer"]["self_attention"],
        )
        config = EpipolarConfig(
            width=self.config["d_feature"],
            downscale=sizes["downscale"],
            samples=sizes["num_samples"],
            layers=sizes["num_layers"],
            heads=sizes["num_heads"],
            head_width=sizes["d_dot"],
            octaves=sizes["num_octaves"],
            views=self.config["views"],
            image=ImageAttentionConfig(
                patch=image["patch_size"],
                octaves=image["num_octaves"],
                layers=image["num_layers"],
                heads=image["num_heads"],
                head_width=image["d_dot"],
                width=image["d_token"],
                hidden=image["d_mlp"],
            ),
        )
        network = EpipolarTransformer(config).double()
        network.load_state_dict(ours(self.weights, config))
        return network


def ours(weights: dict[str, Tensor], config: EpipolarConfig) -> dict[str, Tensor]:
    """The stored weights of the epipolar transformer under our names."""
    result = {}
    for name, value in weights.items():
        if name.startswith("epipolar_transformer."):
            result |= _rename(name.removeprefix("epipolar_transformer."), value, config)
    return result


def _rename(name: str, value: Tensor, config: EpipolarConfig) -> dict[str, Tensor]:
    if name == "view_embeddings.weight":
        return {"view_code.weight": value[: config.views - 1]}
    if not name.startswith(LAYER):
        first, _, rest = name.partition(".")
        known = {"downscaler": "downscale", "upscaler": "upscale", "upscale_refinement": "refine"}
        return {f"{known[first]}.{rest}" if first in known else name.replace("depth_encoding.1", "depth_code"): value}
    layer, part, rest = name.removeprefix(LAYER).split(".", 2)
    block = f"blocks.{layer}."
    if part == "0" and rest == "fn.to_kv.weight":
        key, other = value.chunk(2)
        return {f"{block}ray_attention.key.weight": key, f"{block}ray_attention.value.weight": other}
    names = RAY if part == "0" else IMAGE
    for theirs, mine in names.items():
        if rest.startswith(theirs):
            rest = mine + rest.removeprefix(theirs)
            break
    return {block + _inner(rest): value}


RAY = {"norm": "ray_norm", "fn.to_q": "ray_attention.query", "fn.to_out.0": "ray_attention.out"}
IMAGE = {
    "norm": "image_norm",
    "fn.self_attention.positional_encoding.1": "image_attention.position",
    "fn.self_attention.patch_embedder.0": "image_attention.embed",
    "fn.self_attention.resampler": "image_attention.spread",
    "fn.self_attention.transformer.layers": "image_attention.blocks",
}


def _inner(name: str) -> str:
    """Names inside a token block: `.0.` is attention, `.1.` the feed-forward part."""
    swaps = {
        ".0.norm": ".attention_norm",
        ".0.fn.to_qkv": ".qkv",
        ".0.fn.to_out.0": ".out",
        ".1.norm": ".mlp_norm",
        ".1.fn.net.0": ".mlp.0",
        ".1.fn.net.3": ".mlp.2",
    }
    if not name.startswith("image_attention.blocks"):
        return name
    head, layer, rest = name[: len("image_attention.blocks")], name.split(".")[2], "." + name.split(".", 3)[3]
    for theirs, mine in swaps.items():
        if rest.startswith(theirs):
            return f"{head}.{layer}{mine}{rest.removeprefix(theirs)}"
    raise KeyError(name)


E3NN_AXES = torch.tensor([[0.0, 0, 1], [1, 0, 0], [0, 1, 0]], dtype=torch.float64)
"""e3nn's polar axis is y: its (x, y, z) are the usual (y, z, x)."""


def official_harmonics(sh: Tensor, turn: Tensor) -> Tensor:
    """The official rotation of coefficients: e3nn's axes, and no Condon-Shortley signs, applied as it is.

    Args:
        sh: (V G K 3) camera frame.
        turn: (V 3 3) camera to world.
    """
    degree = int(sh.shape[2] ** 0.5) - 1
    signs = torch.tensor([(-1.0) ** m for band in range(degree + 1) for m in range(-band, band + 1)], dtype=sh.dtype)
    rotation = harmonic_rotations(E3NN_AXES @ turn @ E3NN_AXES.T, degree)
    return signs[:, None] * torch.einsum("vij,vgjc->vgic", rotation, signs[:, None] * sh)


def covariances(gaussians: Gaussians) -> Tensor:
    """(N 3 3) in world axes."""
    w, x, y, z = functional.normalize(gaussians.quaternions, dim=1).unbind(1)
    turn = torch.stack(
        [
            *(1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)),
            *(2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)),
            *(2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)),
        ],
        1,
    ).view(-1, 3, 3)
    return turn @ torch.diag_embed(gaussians.scales.square()) @ turn.transpose(1, 2)

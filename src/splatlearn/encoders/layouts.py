"""How publishers name and store the weights of encoders, and what that becomes here.

A layout translates published keys and axis orders into ours: Pointcept's SpUNet, MinkowskiEngine's networks, VoteNet,
WaffleIron with ScaLR, and the transformers of DINOv2, DUNE and UNIC. Reading and strict loading are in `weights`.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from torch import Tensor, nn

Rule = tuple[str, str, Callable[[Tensor], Tensor] | None]


@dataclass(frozen=True)
class Layout:
    """How a publisher names and stores weights.

    Args:
        rules: (pattern of the published key, our key, change of the tensor or None); the first that matches holds.
        prefixes: removed from the front of keys, repeatedly.
        ignored: beginnings of published keys, without those prefixes, of parts that are not the encoder.
        unused: beginnings of our keys that a file may have and the network may lack.
        kept: beginnings of our keys that the network may have and a file may lack.
        refuses: why a file whose keys fit a network was not made for it after all, or nothing.
    """

    rules: tuple[Rule, ...] = ((".*", r"\g<0>", None),)
    prefixes: tuple[str, ...] = ()
    ignored: tuple[str, ...] = ()
    unused: tuple[str, ...] = ()
    kept: tuple[str, ...] = ()
    refuses: Callable[[nn.Module, Iterable[str]], str] = lambda module, keys: ""

    def excuses(self, published: str, key: str | None) -> bool:
        """Whether a key of the file may be left over; `key` is ours for it."""
        return self._bare(published).startswith(self.ignored) or (key or "").startswith(self.unused)

    def _bare(self, key: str) -> str:
        while prefix := next((p for p in self.prefixes if key.startswith(p)), None):
            key = key.removeprefix(prefix)
        return key

    def convert(self, key: str, value: Tensor) -> tuple[str | None, Tensor]:
        """Our key (None when no rule matches) and the tensor in our axis order."""
        key = self._bare(key)
        for pattern, ours, change in self.rules:
            if match := re.fullmatch(pattern, key):
                return match.expand(ours), change(value) if change else value
        return None, value


def spconv_kernel(weight: Tensor) -> Tensor:
    """(out, kx, ky, kz, in) of spconv 2 -> (k^3, in, out)."""
    return weight.permute(1, 2, 3, 4, 0).reshape(-1, weight.shape[4], weight.shape[0]).contiguous()


def spconv_pointwise(weight: Tensor) -> Tensor:
    """(out, 1, 1, 1, in) of spconv 2 -> Linear (out, in).

    spconv 2.3 reads the stored memory as an (in, out) matrix, which is not the transpose; weights trained with it
    mean that matrix.
    """
    return weight.reshape(weight.shape[-1], weight.shape[0]).t().contiguous()


def minkowski_kernel(weight: Tensor) -> Tensor:
    """(k^3, in, out) of MinkowskiEngine, x fastest -> the same, z fastest."""
    edge = round(weight.shape[0] ** (1 / 3))
    cube = weight.reshape(edge, edge, edge, *weight.shape[1:])
    return cube.transpose(0, 2).reshape(weight.shape).contiguous()


def minkowski_pointwise(weight: Tensor) -> Tensor:
    """(in, out) or (1, in, out) of MinkowskiEngine -> Linear (out, in)."""
    return weight.reshape(weight.shape[-2:]).t().contiguous()


def _flat(value: Tensor) -> Tensor:
    return value.reshape(-1)


def _pixelwise(weight: Tensor) -> Tensor:
    """(out, in, 1, 1) of a 1x1 convolution -> Linear (out, in)."""
    return weight.flatten(1)


def _unit_kernel(weight: Tensor) -> Tensor:
    """(out, in, 1) or (out, in, 1, 1) of a convolution of size 1 -> Linear (out, in); a bias stays."""
    return weight.flatten(1) if weight.ndim > 1 else weight


def _depthwise(weight: Tensor) -> Tensor:
    """(C, 1, 3, 3) of a depthwise convolution -> (9, C); a bias stays."""
    return weight.flatten(1).t().contiguous() if weight.ndim > 1 else weight


def _row(weight: Tensor) -> Tensor:
    """(C, 1, 1) -> (1, C)."""
    return weight.reshape(1, -1)


def _spunet_rules() -> tuple[Rule, ...]:
    """Pointcept's SpUNet-v1m1: conv_input, down, enc, up, dec, final."""
    rules: list[Rule] = [
        (r"conv_input\.0\.weight", "stem.conv.weight", spconv_kernel),
        (r"conv_input\.1\.(\w+)", r"stem.norm.\1", None),
        (r"final\.weight", "head.weight", spconv_pointwise),
        (r"final\.bias", "head.bias", None),
    ]
    for change, blocks in (("down", "enc"), ("up", "dec")):
        block = rf"{blocks}\.(\d+)\.block(\d+)\."
        ours = rf"{change}.\1.blocks.\2."
        rules += [
            (rf"{change}\.(\d+)\.0\.weight", rf"{change}.\1.resample.conv.weight", spconv_kernel),
            (rf"{change}\.(\d+)\.1\.(\w+)", rf"{change}.\1.resample.norm.\2", None),
            (block + r"conv(\d)\.weight", ours + r"conv\3.weight", spconv_kernel),
            (block + r"bn(\d)\.(\w+)", ours + r"norm\3.\4", None),
            (block + r"proj\.0\.weight", ours + "projection.0.weight", spconv_pointwise),
            (block + r"proj\.1\.(\w+)", ours + r"projection.1.\3", None),
        ]
    return tuple(rules)


def _minkunet_rules(depth: int = 4) -> tuple[Rule, ...]:
    """MinkowskiEngine's MinkUNet and PointContrast's Res16UNet: numbers run down to the coarsest level, then up."""
    rules: list[Rule] = [
        (r"conv0p1s1\.kernel", "stem.conv.weight", minkowski_kernel),
        (r"bn0\.bn\.(\w+)", r"stem.norm.\1", None),
        (r"final\.kernel", "head.weight", minkowski_pointwise),
        (r"final\.bias", "head.bias", _flat),
    ]
    for s in range(depth):
        up = 2 * depth - 1 - s
        for conv, norm, number, ours in (
            (rf"conv{s + 1}p\d+s2", f"bn{s + 1}", s + 1, f"down.{s}."),
            (rf"convtr{up}p\d+s2", f"bntr{up}", up + 1, f"up.{s}."),
        ):
            block, to = rf"block{number}\.(\d+)\.", ours + r"blocks.\1."
            rules += [
                (conv + r"\.kernel", ours + "resample.conv.weight", minkowski_kernel),
                (norm + r"\.bn\.(\w+)", ours + r"resample.norm.\1", None),
                (block + r"conv(\d)\.kernel", to + r"conv\2.weight", minkowski_kernel),
                (block + r"norm(\d)\.bn\.(\w+)", to + r"norm\2.\3", None),
                (block + r"downsample\.0\.kernel", to + "projection.0.weight", minkowski_pointwise),
                (block + r"downsample\.1\.bn\.(\w+)", to + r"projection.1.\2", None),
            ]
    return tuple(rules)


def _votenet_rules() -> tuple[Rule, ...]:
    """VoteNet's PointNet++ backbone: sa1 to sa4, fp1 and fp2, counted from 1."""
    rules: list[Rule] = []
    for module, count, ours in ((r"sa{}\.mlp_module", 4, "down.{}"), (r"fp{}\.mlp", 2, "up.{}")):
        for i in range(count):
            layer, to = module.format(i + 1) + r"\.layer(\d)\.", ours.format(i) + r".blocks.\1."
            rules.append((layer + r"conv\.weight", to + "linear.weight", _pixelwise))
            rules.append((layer + r"bn\.bn\.(\w+)", to + r"norm.\2", None))
    return tuple(rules)


def _waffleiron_rules() -> tuple[Rule, ...]:
    """WaffleIron's and ScaLR's embed, spatial_mix and channel_mix."""
    channel, spatial = r"waffleiron\.channel_mix\.(\d+)\.", r"waffleiron\.spatial_mix\.(\d+)\."
    return (
        (r"embed\.norm\.(\w+)", r"stem.norm.\1", None),
        (r"embed\.conv1\.(weight|bias)", r"stem.point.\1", _unit_kernel),
        (r"embed\.conv2\.0\.(\w+)", r"stem.pair_norm.\1", None),
        (r"embed\.conv2\.1\.weight", "stem.pair.weight", _unit_kernel),
        (r"embed\.conv2\.2\.(\w+)", r"stem.hidden_norm.\1", None),
        (r"embed\.conv2\.4\.weight", "stem.hidden.weight", _unit_kernel),
        (r"embed\.final\.(weight|bias)", r"stem.join.\1", _unit_kernel),
        (channel + r"norm\.(\w+)", r"blocks.\1.channel.norm.\2", None),
        (channel + r"mlp\.0\.(weight|bias)", r"blocks.\1.channel.first.\2", _unit_kernel),
        (channel + r"mlp\.2\.(weight|bias)", r"blocks.\1.channel.second.\2", _unit_kernel),
        (channel + r"scale\.weight", r"blocks.\1.channel.scale", _row),
        (spatial + r"norm\.(\w+)", r"blocks.\1.spatial.norm.\2", None),
        (spatial + r"ffn\.0\.(weight|bias)", r"blocks.\1.spatial.first.\2", _depthwise),
        (spatial + r"ffn\.2\.(weight|bias)", r"blocks.\1.spatial.second.\2", _depthwise),
        (spatial + r"scale\.weight", r"blocks.\1.spatial.scale", _row),
    )


def _vit_rules() -> tuple[Rule, ...]:
    """DINOv2's vision transformer, whose blocks may lie in one chunk (`blocks.0.3`)."""
    return (
        (r"cls_token", "class_token", None),
        (r"pos_embed", "positions", None),
        (r"register_tokens", "registers", None),
        (r"patch_embed\.proj\.(weight|bias)", r"patches.\1", None),
        (r"blocks\.(?:0\.)?(\d+)\.(norm.*|attn.*|ls.*|mlp.*)", r"blocks.\1.\2", None),
        (r"norm\.(weight|bias)", r"norm.\1", None),
    )


def waffleiron_activation(keys: Iterable[str]) -> str:
    """`gelu` or `relu` where published keys leave no doubt, else nothing.

    Only ScaLR+ has a perceptron as its head, and only WaffleIron itself, made before GELU came in, batch norms.
    """
    bare = {key.removeprefix("module.") for key in keys}
    if "classif.2.weight" in bare:
        return "gelu"
    return "relu" if "waffleiron.channel_mix.0.norm.running_mean" in bare else ""


def _another_activation(module: nn.Module, keys: Iterable[str]) -> str:
    """Weights of one activation load into a network of the other without a murmur, and give useless features."""
    own, published = getattr(getattr(module, "config", None), "act", ""), waffleiron_activation(keys)
    if own and published and own != published:
        return f"they were trained with {published.upper()}, and this network has {own.upper()}: act={published}"
    return ""


LAYOUTS: Mapping[str, Layout] = {
    "splatlearn": Layout(),
    "spunet": Layout(
        _spunet_rules(), prefixes=("module.", "backbone."), ignored=("seg_head.", "bias_head."), unused=("head.",)
    ),
    "minkunet": Layout(_minkunet_rules(), prefixes=("module.",), unused=("head.",)),
    "votenet": Layout(
        _votenet_rules(),
        prefixes=("module.", "backbone_net."),
        ignored=("vgen.", "pnet."),
        kept=("up.2.", "up.3."),
    ),
    "waffleiron": Layout(
        _waffleiron_rules(), prefixes=("module.",), ignored=("classif.",), refuses=_another_activation
    ),
    "vit": Layout(
        _vit_rules(),
        prefixes=("module.", "_orig_mod.", "encoder."),
        ignored=("mask_token", "projectors.", "teacher_norms.", "lp."),
        unused=("norm.",),
    ),
}
"""Published layouts by name; `splatlearn` is our own."""

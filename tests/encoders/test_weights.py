"""Weights: strict loading, one error for everything, published axis orders."""

import json

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from splatlearn.encoders.layouts import (
    LAYOUTS,
    minkowski_kernel,
    minkowski_pointwise,
    spconv_kernel,
    spconv_pointwise,
)
from splatlearn.encoders.weights import load_weights, match_keys, read_weights
from splatlearn.errors import BadData, ConfigError, UserError
from splatlearn.registry import encoders


def _network():
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))


@pytest.mark.parametrize("name", ["a.safetensors", "a.pth", "checkpoint.tar"])
def test_saved_weights_come_back(tmp_path, name):
    first, second, path = _network(), _network(), tmp_path / name
    state = first.state_dict()
    if name.endswith("safetensors"):
        save_file(state, path)
    else:
        torch.save({"epoch": 3, "model_state_dict": state} if "checkpoint" in name else state, path)
    report = load_weights(second, path)
    assert report.complete and len(report.loaded) == 7
    assert all(torch.equal(a, b) for a, b in zip(first.state_dict().values(), second.state_dict().values()))


def test_everything_that_does_not_fit_is_in_one_error():
    network = _network()
    state = network.state_dict()
    before = network[0].weight.clone()
    del state["1.bias"]
    state["2.weight"] = torch.zeros(1)
    state["0.weight"] = torch.zeros(4, 5)
    with pytest.raises(UserError) as caught:
        load_weights(network, state)
    for part in ("missing: 1.bias", "unexpected: 2.weight", "0.weight: (4, 5) found, (4, 3) expected"):
        assert part in str(caught.value)
    assert torch.equal(network[0].weight, before)


def test_unreadable_files_and_unknown_layouts(tmp_path):
    with pytest.raises(BadData, match=r"absent\.safetensors: no such file"):
        load_weights(_network(), tmp_path / "absent.safetensors")
    for name, message in (
        ("broken.safetensors", "not a readable safetensors"),
        ("broken.pth", "not a file of tensors"),
    ):
        (tmp_path / name).write_bytes(b"junk")
        with pytest.raises(BadData, match=f"{name}: {message}"):
            read_weights(tmp_path / name)
    with pytest.raises(ConfigError, match="did you mean 'spunet'"):
        match_keys(_network(), {}, "spnet")


def test_spconv_axes():
    published = torch.randn(4, 2, 2, 2, 3)
    ours = spconv_kernel(published)
    assert torch.equal(ours[1 * 4 + 0 * 2 + 1], published[:, 1, 0, 1, :].t())
    pointwise = torch.randn(4, 1, 1, 1, 3)
    rows = torch.randn(5, 3)
    assert torch.equal(rows @ spconv_pointwise(pointwise).t(), rows @ pointwise.reshape(3, 4))


def test_minkowski_axes():
    published = torch.randn(27, 3, 4)
    x, y, z = 2, 0, 1
    assert torch.equal(minkowski_kernel(published)[x * 9 + y * 3 + z], published[x + 3 * y + 9 * z])
    assert torch.equal(minkowski_pointwise(published[:1]), published[0].t())


def _minkowski_name(key):
    """Our key -> MinkUNet34C's, written out independently of the layout."""
    place, _, rest = key.partition(".")
    if place in ("stem", "head"):
        part, leaf = rest.split(".") if "." in rest else ("", rest)
        name = {"conv": "conv0p1s1", "norm": "bn0.bn", "": "final"}[part]
        return f"{name}.{'kernel' if leaf == 'weight' and part != 'norm' else leaf}"
    level, kind, rest = rest.split(".", 2)
    level = int(level)
    number = level + 1 if place == "down" else 7 - level
    if kind == "resample":
        tr, stride = ("", 2**level) if place == "down" else ("tr", 2 ** (level + 1))
        part, leaf = rest.split(".")
        return f"conv{tr}{number}p{stride}s2.kernel" if part == "conv" else f"bn{tr}{number}.bn.{leaf}"
    block, part, leaf = rest.split(".", 2)
    prefix = f"block{number if place == 'down' else number + 1}.{block}"
    if part == "projection":
        index, leaf = leaf.split(".")
        return f"{prefix}.downsample.{index}.{'kernel' if index == '0' else 'bn.' + leaf}"
    return f"{prefix}.{part}.{'kernel' if part.startswith('conv') else 'bn.' + leaf}"


def test_minkunet_keys_are_all_taken():
    network = encoders.create("sparse_unet.res16unet34c", {"out_channels": 20})
    published = {}
    for key, value in network.state_dict().items():
        shape = value.t().shape if value.ndim == 2 else value.shape
        published[_minkowski_name(key)] = torch.empty((1, 20) if key == "head.bias" else shape)
    assert {"convtr4p16s2.kernel", "block2.0.downsample.0.kernel", "bntr7.bn.weight", "final.bias"} <= set(published)
    values, report = match_keys(network, published, "minkunet")
    assert report.complete and len(values) == len(network.state_dict())


def test_prefixes_are_stripped_and_classifiers_may_be_left_over():
    key, _ = LAYOUTS["spunet"].convert("module.backbone.dec.3.block0.proj.1.running_mean", torch.zeros(1))
    assert key == "up.3.blocks.0.projection.1.running_mean"
    assert LAYOUTS["votenet"].convert("backbone_net.fp1.mlp.layer0.bn.bn.bias", torch.zeros(1))[0] == (
        "up.0.blocks.0.norm.bias"
    )
    _, report = match_keys(nn.Linear(1, 1), {"final.bias": torch.zeros(7), "odd": torch.zeros(1)}, "spunet")
    assert report.unused == ("final.bias",) and report.unexpected == ("odd",)
    assert "1 unused: final.bias" in str(report)


@pytest.mark.parametrize("name", ["votenet_scannet", "votenet_sunrgbd"])
def test_a_whole_detector(shared_parity, name):
    """What is not the backbone may be left over; a file with nothing else still lacks everything."""
    manifest = json.loads((shared_parity / "manifests" / f"{name}.json").read_text())
    state = {f"module.{key}": torch.zeros(value["shape"]) for key, value in manifest["keys"].items()}
    encoder = encoders.create("pointnet2.votenet", {"inputs": ("height",)})
    report = load_weights(encoder, state, "votenet")
    assert len(report.loaded) == 96 and len(report.unused) == 50
    assert {key.split(".")[1] for key in report.unused} == {"pnet", "vgen"}
    heads = {key: value for key, value in state.items() if "backbone_net" not in key}
    with pytest.raises(UserError, match="0 keys loaded; 96 missing"):
        load_weights(encoder, heads, "votenet")


def test_a_whole_segmentor(shared_parity):
    manifest = json.loads((shared_parity / "manifests" / "spunet34c_scannet20.json").read_text())
    state = {f"module.backbone.{key}": torch.zeros(value["shape"]) for key, value in manifest["keys"].items()}
    state |= {"module.seg_head.weight": torch.zeros(20, 96), "module.seg_head.bias": torch.zeros(20)}
    encoder = encoders.create("sparse_unet.34c", {"inputs": ("color", "normal")})
    report = load_weights(encoder, state, "spunet")
    assert {"module.seg_head.weight", "module.seg_head.bias"} <= set(report.unused)

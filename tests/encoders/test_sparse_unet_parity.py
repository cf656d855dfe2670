"""The official SpUNet's numbers: forward, intermediates, gradients and train mode."""

import json

import pytest
import torch
from safetensors.torch import load_file

from splatlearn.encoders.layouts import LAYOUTS
from splatlearn.encoders.sparse_unet import SparseUNet, SparseUNetConfig
from splatlearn.encoders.weights import load_weights, match_keys
from splatlearn.ops.voxels import Voxels, coarsen, pack_keys, unique_voxels
from splatlearn.structures import Points

PLACES = {
    "conv_input": "stem",
    "down": "down.{}.resample",
    "enc": "down.{}",
    "up": "up.{}.resample",
    "dec": "up.{}",
}


class Case:
    """The stored case, its network in `dtype`, and the tolerance it states."""

    def __init__(self, folder, dtype):
        config = json.loads((folder / "case.json").read_text())["config"]
        io = load_file(folder / "io.safetensors")
        self.stored = {k: v.to(dtype) if v.is_floating_point() else v for k, v in io.items()}
        self.encoder = SparseUNet(
            SparseUNetConfig(
                inputs=("color", "normal"),
                voxel=1.0,
                stem=config["base_channels"],
                channels=tuple(config["channels"]),
                layers=tuple(config["layers"]),
                out_channels=config["num_classes"],
                norm_eps=1e-3,
                norm_momentum=0.01,
            )
        )
        self.report = load_weights(self.encoder, load_file(folder / "weights.safetensors"), "spunet")
        self.encoder.to(dtype)

    def points(self):
        """The case's cloud; colours are moved to [0, 1], since the encoder moves them back."""
        ends = self.stored["in.offset"].tolist()
        counts = tuple(b - a for a, b in zip([0, *ends], ends))
        self.features = self.stored["in.feat"].clone().requires_grad_()
        attributes = {"color": (self.features[:, :3] + 1) / 2, "normal": self.features[:, 3:]}
        return Points(xyz=self.stored["in.grid_coord"].to(self.features.dtype), counts=counts, attributes=attributes)

    def check(self, name, value, gradient=False):
        expected = self.stored[name]
        absolute, relative = (1e-4, 1e-3) if gradient else (1e-5, 1e-4)
        if value.dtype == torch.float64:
            absolute, relative = absolute / 10, relative / 10
        error = float((value.detach() - expected).abs().max())
        assert error <= absolute + relative * float(expected.abs().max()), f"{name}: off by {error}"

    def run(self):
        """Output rows in input order, after backward of sum(output * cotangent)."""
        output = self.encoder(self.points()).dense()
        loss = (output * self.stored["in.cotangent"]).sum()
        loss.backward()
        return output, loss

    def check_gradients(self, prefix):
        self.check(f"{prefix}grad.in.feat", self.features.grad, gradient=True)
        gradients = {n: p.grad for n, p in self.encoder.named_parameters()}
        compared = 0
        for name in self.stored:
            if name.startswith(f"{prefix}grad.w."):
                key, stored = LAYOUTS["spunet"].convert(name.removeprefix(f"{prefix}grad.w."), self.stored[name])
                self.stored[name] = stored
                self.check(name, gradients[key], gradient=True)
                compared += 1
        assert compared == 10


@pytest.fixture(params=[torch.float32, torch.float64], ids=["float32", "float64"])
def case(request, shared_parity):
    return Case(shared_parity / "spunet" / "three_stages_two_scenes", request.param)


def test_all_keys_are_taken(case):
    assert case.report.complete
    assert not case.report.unused and not case.report.kept


def test_forward_and_gradients_in_eval_mode(case):
    case.encoder.eval()
    output, loss = case.run()
    case.check("out.feat", output)
    case.check("out.loss", loss.reshape(1))
    case.check_gradients("")


def test_train_mode_and_running_statistics(case):
    output, loss = case.run()
    case.check("train.out.feat", output)
    case.check("train.out.loss", loss.reshape(1))
    case.check_gradients("train.")
    buffers = dict(case.encoder.named_buffers())
    states = [name for name in case.stored if name.startswith("train.out.state.")]
    for name in states:
        key, _ = LAYOUTS["spunet"].convert(name.removeprefix("train.out.state."), case.stored[name])
        case.check(name, buffers[key])
    assert len(states) > 40


def _levels(case):
    points = case.points()
    item = points.item
    voxels, _ = unique_voxels(pack_keys(case.stored["in.grid_coord"].long(), item), len(points.counts))
    levels = [voxels]
    while len(levels) < 4:
        levels.append(coarsen(levels[-1])[0])
    return {len(level): level for level in levels}


def _place(stored_name):
    module, _, rest = stored_name.partition(".")
    number, _, rest = rest.partition(".")
    place = PLACES[module].format(number)
    return place + (".blocks.0.projection" if rest == "block0.proj" else "")


def test_intermediates(case):
    case.encoder.eval()
    names = [n.removeprefix("mid.").removesuffix(".feat") for n in case.stored if n.endswith(".feat") and "mid." in n]
    seen = {}
    for name in names:
        module = case.encoder.get_submodule(_place(name))
        module.register_forward_hook(lambda _m, _i, out, name=name: seen.__setitem__(name, out.detach().clone()))
    case.run()
    levels = _levels(case)
    assert len(names) == 16
    for name in names:
        expected = case.stored[f"mid.{name}.feat"]
        level: Voxels = levels[len(expected)]
        indices = case.stored.get(f"mid.{name}.indices", case.stored.get(f"mid.{name.split('.block')[0]}.indices"))
        rows = torch.searchsorted(level.keys, pack_keys(indices[:, 1:].long(), indices[:, 0].long()))
        case.check(f"mid.{name}.feat", seen[name][rows])


def test_full_size_manifest(shared_parity):
    manifest = json.loads((shared_parity / "manifests" / "spunet34c_scannet20.json").read_text())
    state = {k: torch.empty(v["shape"]) for k, v in manifest["keys"].items()}
    encoder = SparseUNet(SparseUNetConfig(inputs=("color", "normal"), out_channels=20))
    values, report = match_keys(encoder, {f"module.backbone.{k}": v for k, v in state.items()}, "spunet")
    headless = SparseUNet(SparseUNetConfig(inputs=("color", "normal")))
    _, without = match_keys(headless, state, "spunet")
    assert report.complete and len(values) == manifest["num_keys"] and not report.unused
    assert sum(p.numel() for p in encoder.parameters()) == manifest["num_parameters"]
    assert without.complete and without.unused == ("final.bias", "final.weight")

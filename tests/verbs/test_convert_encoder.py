"""`convert` of published weights: what is recognised, what is refused, and that the numbers stay."""

import json
import tarfile

import pytest
import torch
from torch import nn

import splatlearn
from encoders.waffleiron_twin import Twin
from splatlearn.cli import main
from splatlearn.encoders.waffleiron import WaffleIron, WaffleIronConfig
from splatlearn.encoders.weights import load_weights
from splatlearn.engine.checkpoint import load_encoder
from splatlearn.errors import UserError
from splatlearn.structures import Points

HEADS = {
    "v1": lambda width: nn.Conv1d(width, 384, 1),
    "plus": lambda width: nn.Sequential(nn.Conv1d(width, 20, 1), nn.ReLU(), nn.Conv1d(20, 384, 1)),
    "downstream": lambda width: nn.Sequential(nn.BatchNorm1d(width), nn.Conv1d(width, 16, 1)),
    "supervised": lambda width: nn.Conv1d(width, 19, 1),
}


def state(head, depth=3, width=8, prefix="module.", **options):
    """A state dict under the published names, of random numbers."""
    torch.manual_seed(0)
    twin = Twin(WaffleIronConfig(depth=depth, width=width, **options))
    if head:
        twin.classif = HEADS[head](width)
    return {f"{prefix}{key}": value for key, value in twin.state_dict().items()}


def checkpoint(path, values, entry="model_point"):
    """A file as ScaLR's training code leaves it."""
    path.parent.mkdir(exist_ok=True)
    torch.save({entry: values, "epoch": 3, "optim": {"state": {}, "param_groups": []}, "scaler": None}, path)
    return path


def cloud():
    generator = torch.Generator().manual_seed(1)
    xyz = torch.rand(80, 3, generator=generator) * 10
    return Points(xyz=xyz, attributes={"reflectance": torch.rand(80, generator=generator)})


@pytest.mark.parametrize(
    ("head", "entry", "options", "act", "expected"),
    [
        ("v1", "model_points", {}, None, ("ScaLR", "distilled", "relu")),
        ("plus", "model_point", {}, None, ("ScaLR+", "distilled", "gelu")),
        ("downstream", "net", {}, "gelu", ("ScaLR+", "segmentation", "gelu")),
        ("downstream", "net", {}, "relu", ("ScaLR", "segmentation", "relu")),
        ("supervised", "net", {"norm": "batchnorm"}, None, ("WaffleIron", "segmentation", "relu")),
        ("v1", "model_point", {}, "gelu", ("ScaLR+", "distilled", "gelu")),
        ("supervised", "net", {}, None, ("WaffleIron", "segmentation", "relu")),
        ("", "net", {}, "gelu", ("ScaLR+", "trunk", "gelu")),
    ],
)
def test_generations(tmp_path, head, entry, options, act, expected):
    values = state(head, **options)
    source, target = checkpoint(tmp_path / "ckpt_last.pth", values, entry), tmp_path / "out"
    done = splatlearn.convert(source, target, encoder_options={"act": act} if act else {})
    encoder, written = load_encoder(target), json.loads((target / "encoder.json").read_text())
    generation, stage, activation = expected
    assert written["source"]["generation"] == done.facts["generation"] == generation
    assert (written["source"]["stage"], encoder.config.act) == (stage, activation)
    assert (encoder.config.depth, encoder.config.width) == (3, 8)
    assert encoder.config.norm == options.get("norm", "layernorm")
    own = WaffleIron(encoder.config)
    load_weights(own, values, "waffleiron")
    assert torch.equal(own.eval()(cloud()).dense(), encoder(cloud()).dense())
    assert sorted(path.name for path in target.iterdir()) == ["encoder.json", "encoder.safetensors"]


def test_what_is_printed(tmp_path, capsys):
    source = checkpoint(tmp_path / "a.pth", state("plus"))
    assert main(["convert", str(source), str(tmp_path / "out"), "--dry-run"]) == 0
    text = capsys.readouterr().out
    for words in (
        "dry run: nothing was written",
        "ScaLR+, distilled",
        "keys, all in place",
        "gelu: the head is ScaLR+'s",
        "left out, it is no part of the encoder (classif.0.weight (20, 8, 1), classif.2.weight (384, 20, 1))",
        "grids",
    ):
        assert words in text
    assert not (tmp_path / "out").exists()
    assert main(["convert", str(source), str(tmp_path / "out"), "--encoder.grids", "[[9,9],[9,4],[9,4]]"]) == 0
    assert load_encoder(tmp_path / "out").config.grids == ((9, 9), (9, 4), (9, 4))
    assert main(["convert", str(source), str(tmp_path / "out")]) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert main(["convert", str(source), str(tmp_path / "out"), "--overwrite"]) == 0
    (tmp_path / "out" / "notes.txt").write_text("mine")
    assert main(["convert", str(source), str(tmp_path / "out"), "--overwrite"]) == 2
    assert "notes.txt" in capsys.readouterr().err


class TestActivation:
    def test_a_segmentation_network_does_not_tell(self, tmp_path):
        source = checkpoint(tmp_path / "ckpt_last.pth", state("downstream"), "net")
        with pytest.raises(UserError, match=r"no mark of its activation.*--encoder\.act gelu for ScaLR\+"):
            splatlearn.convert(source, tmp_path / "out")
        with pytest.raises(UserError, match=r"relu or gelu is needed, got tanh"):
            splatlearn.convert(source, tmp_path / "out", encoder_options={"act": "tanh"})

    def test_the_folder_may(self, tmp_path):
        source = checkpoint(tmp_path / "ScaLR_plus" / "ckpt_last.pth", state("downstream"), "net")
        assert splatlearn.convert(source, tmp_path / "out").facts["generation"] == "ScaLR+"
        with pytest.raises(UserError, match=r"trained with GELU \(the name says ScaLR\+\)"):
            splatlearn.convert(source, tmp_path / "other", encoder_options={"act": "relu"})
        odd = checkpoint(tmp_path / "ScaLR_plus" / "a.pth", state("supervised", norm="batchnorm"))
        with pytest.raises(UserError, match="the name says ScaLR\\+, but it has"):
            splatlearn.convert(odd, tmp_path / "other")
        first = checkpoint(tmp_path / "ScaLR_plus" / "b.pth", state("v1"))
        with pytest.raises(UserError, match="the name says ScaLR\\+, but a head of one layer"):
            splatlearn.convert(first, tmp_path / "other")
        done = splatlearn.convert(first, tmp_path / "other", encoder_options={"act": "relu"})
        assert done.facts["generation"] == "ScaLR"

    @pytest.mark.parametrize(("head", "norm", "wrong"), [("plus", "layernorm", "relu"), ("v1", "batchnorm", "gelu")])
    def test_the_wrong_one_is_refused(self, tmp_path, head, norm, wrong):
        values = state(head, norm=norm)
        with pytest.raises(UserError, match=r"useless features\. Leave --encoder\.act out"):
            splatlearn.convert(checkpoint(tmp_path / "a.pth", values), tmp_path / "b", encoder_options={"act": wrong})
        encoder = WaffleIron(WaffleIronConfig(depth=3, width=8, act=wrong, norm=norm))
        with pytest.raises(UserError, match="the keys fit WaffleIron, but they were trained with"):
            load_weights(encoder, values, "waffleiron")


def test_archives(tmp_path):
    inner = checkpoint(tmp_path / "ScaLR_plus_nuscenes" / "ckpt_last.pth", state("downstream"), "net")
    packed = tmp_path / "weights.tar.gz"
    with tarfile.open(packed, "w:gz") as archive:
        archive.add(inner, "ScaLR_plus_nuscenes/ckpt_last.pth")
    done = splatlearn.convert(packed, tmp_path / "out")
    assert done.facts["origin"].endswith("weights.tar.gz:ScaLR_plus_nuscenes/ckpt_last.pth")
    assert done.facts["generation"] == "ScaLR+"
    with tarfile.open(packed, "w:gz") as archive:
        archive.add(inner, "a/one.pth")
        archive.add(inner, "a/two.pth")
    with pytest.raises(UserError, match=r"one checkpoint is expected.*a/one\.pth, a/two\.pth; unpack it"):
        splatlearn.convert(packed, tmp_path / "other")


class TestRefusals:
    def test_keys_and_shapes(self, tmp_path):
        values = state("plus")
        values.pop("module.embed.final.bias")
        values["module.waffleiron.odd"] = torch.zeros(1)
        values["module.waffleiron.spatial_mix.1.ffn.0.bias"] = torch.zeros(9)
        with pytest.raises(UserError) as caught:
            splatlearn.convert(checkpoint(tmp_path / "a.pth", values), tmp_path / "out")
        for words in ("1 missing: stem.join.bias", "1 unexpected: waffleiron.odd", "blocks.1.spatial.first.bias: (9,)"):
            assert words in str(caught.value)
        assert not (tmp_path / "out").exists()

    @pytest.mark.parametrize("name", ["a.pth", "a.tar.gz", "a.safetensors", "missing.pth"])
    def test_other_files(self, tmp_path, capsys, name):
        if "missing" not in name:
            (tmp_path / name).write_bytes(b"words")
        assert main(["convert", str(tmp_path / name), str(tmp_path / "out")]) == 2
        assert name in capsys.readouterr().err

    def test_another_network(self, tmp_path):
        torch.save({"state_dict": nn.Linear(2, 2).state_dict()}, tmp_path / "a.pth")
        with pytest.raises(UserError, match=r"no weights of WaffleIron or ScaLR.*begin with weight, bias"):
            splatlearn.convert(tmp_path / "a.pth", tmp_path / "out")

    def test_numbers_that_are_not_finite(self, tmp_path):
        values = state("v1")
        values["module.embed.final.bias"][0] = torch.nan
        with pytest.raises(UserError, match="features that are not finite"):
            splatlearn.convert(checkpoint(tmp_path / "a.pth", values), tmp_path / "out")

    def test_options_that_contradict_the_file(self, tmp_path):
        source = checkpoint(tmp_path / "a.pth", state("v1"))
        with pytest.raises(UserError, match=r"--encoder\.width 16: .* with width 8; leave it out"):
            splatlearn.convert(source, tmp_path / "out", encoder_options={"width": 16})
        with pytest.raises(UserError, match="name a folder"):
            splatlearn.convert(source, tmp_path / "out.safetensors")
        with pytest.raises(UserError, match="go with weights"):
            splatlearn.convert(tmp_path / "a.ply", tmp_path / "b.ply", dry_run=True)

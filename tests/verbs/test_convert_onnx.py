"""`convert` of encoders into ONNX: the numbers of torch at any size, and what is refused."""

import json
import sys

import pytest
import torch
from safetensors.torch import save_file

import splatlearn
from splatlearn.cli import main
from splatlearn.encoders.graphs import WaffleIronGraph, graph_of, point_inputs
from splatlearn.engine.checkpoint import describe_encoder, encoder_digest, load_encoder
from splatlearn.errors import BadData, UserError
from splatlearn.registry import encoders
from splatlearn.structures import Points
from splatlearn.verbs import convert_onnx

MODELS = {
    "vit": ("vit.tiny", {"depth": 2, "levels": [0, 1], "layer_scale": 1.0}),
    "waffleiron": ("waffleiron.tiny", {"width": 8, "neighbors": 3, "inputs": ["reflectance", "height"]}),
}


def stored(folder, name, options, seed=0, **origin):
    """A folder of an encoder with random weights, batch-norm statistics included."""
    torch.manual_seed(seed)
    encoder = encoders.create(name, options)
    encoder.name = name
    state = {key: value + 0.1 * torch.rand_like(value) for key, value in encoder.state_dict().items() if value.dim()}
    folder.mkdir(parents=True)
    save_file({**encoder.state_dict(), **state}, folder / "encoder.safetensors")
    source = {"source": origin} if origin else {}
    (folder / "encoder.json").write_text(json.dumps({**describe_encoder(encoder), **source}))
    return folder


@pytest.fixture
def libraries():
    for name in ("onnx", "onnxruntime", "onnxscript"):
        pytest.importorskip(name, reason="the libraries of the extra `export` are not installed")


@pytest.fixture(scope="module", params=MODELS)
def exported(request, tmp_path_factory):
    """Encoder, session and what `convert` returned, of each family."""
    for name in ("onnx", "onnxscript"):
        pytest.importorskip(name, reason="the libraries of the extra `export` are not installed")
    onnxruntime = pytest.importorskip("onnxruntime", reason="onnxruntime, of the extra `export`, is not installed")
    folder = tmp_path_factory.mktemp("onnx")
    source = stored(folder / "encoder", *MODELS[request.param], licence="CC0")
    done = splatlearn.convert(source, folder / "new" / "model.onnx")
    session = onnxruntime.InferenceSession(done.target, providers=["CPUExecutionProvider"])
    return request.param, load_encoder(source), session, done


def close(found, expected):
    assert len(found) == len(expected)
    for got, wanted in zip(found, expected):
        assert got.shape == tuple(wanted.shape)
        assert float((torch.as_tensor(got) - wanted).abs().max()) < 1e-4 * float(wanted.std())


def test_what_is_told(exported):
    family, _, session, done = exported
    told = json.loads(done.target.with_suffix(".json").read_text())
    for ports, values in (("inputs", session.get_inputs()), ("outputs", session.get_outputs())):
        assert [(p["name"], p["shape"]) for p in told[ports]] == [(value.name, value.shape) for value in values]
    assert told["encoder"]["name"] == done.name == MODELS[family][0]
    assert told["weights_sha256"] == encoder_digest(done.source)
    assert told["source"] == {"licence": "CC0"} and done.licence == "CC0"
    assert 0 < told["difference"] == done.difference < 1e-4
    assert f"opset {done.opset}" in str(done) and "licence: CC0" in str(done)
    assert sorted(path.name for path in done.target.parent.iterdir()) == ["model.json", "model.onnx"]
    assert b"site-packages" not in (data := done.target.read_bytes()) and b"graphs.py" not in data


@pytest.mark.parametrize("exported", ["vit"], indirect=True)
class TestImages:
    @torch.no_grad()
    def test_any_size_and_number(self, exported):
        _, encoder, session, _ = exported
        for shape in ((1, 3, 56, 56), (1, 3, 14, 14), (2, 3, 28, 140), (5, 3, 98, 42)):
            images = torch.rand(shape)
            maps = encoder(images)
            close(session.run(None, {"images": images.numpy()}), (*maps.levels, maps.summary))

    @pytest.mark.parametrize("size", [(57, 56), (56, 57), (7, 28)])
    def test_sizes_that_the_patch_does_not_divide_are_refused(self, exported, size):
        with pytest.raises(Exception, match="cannot be reshaped"):
            exported[2].run(None, {"images": torch.rand(1, 3, *size).numpy()})


@pytest.mark.parametrize("exported", ["waffleiron"], indirect=True)
@pytest.mark.parametrize("number", [1, 2, 700])
@torch.no_grad()
def test_any_number_of_points(exported, number):
    _, encoder, session, _ = exported
    cloud = Points(xyz=torch.randn(number, 3) * 6, attributes={"reflectance": torch.rand(number)})
    features, inputs = encoder(cloud), point_inputs(encoder.config, cloud)
    found = session.run(None, {name: value.numpy() for name, value in inputs.items()})
    close(found, (features.levels[0].features, features.summary))


class TestGraphs:
    """Without the libraries: the plain graphs give what the encoders give."""

    @pytest.mark.parametrize(
        ("name", "options"),
        [
            ("vit.tiny", {"registers": 0, "norm": True, "levels": (1,), "layer_scale": 0.0}),
            ("vit.tiny", {"patch": 8, "layer_scale": 1.0}),
            ("waffleiron.tiny", {"inputs": ("color", "normal")}),
            ("waffleiron.tiny", {"norm": "batchnorm", "act": "relu", "planes": ("yz",), "grids": ((5, 3),)}),
        ],
    )
    @torch.no_grad()
    def test_variants(self, name, options):
        encoder = encoders.create(name, options).eval()
        graph = graph_of(encoder)
        for number in range(convert_onnx.CHECKS):
            made = graph.made_up(number)
            expected = convert_onnx._outputs(encoder, made)
            found = graph(*graph.inputs(made).values())
            assert [tuple(value.shape[1:2]) for value in found] == [port.shape[1:2] for port in graph.gives]
            for got, wanted in zip(found, expected, strict=True):
                assert torch.allclose(got, wanted, rtol=1e-4, atol=1e-5)

    def test_one_scan(self):
        config = encoders.config("waffleiron.tiny")
        cloud = Points(xyz=torch.rand(30, 3), attributes={"reflectance": torch.rand(30)})
        cloud = cloud.rows(torch.arange(30).repeat(2))
        assert len(point_inputs(config, cloud)["xyz"]) == len(config.kept(cloud)) <= 30
        with pytest.raises(UserError, match="one scan at a time, got 2"):
            point_inputs(config, Points.pack([cloud, cloud]))


class TestRefusals:
    def test_the_target(self, tmp_path, libraries, capsys):
        source, target = stored(tmp_path / "a", *MODELS["vit"]), tmp_path / "model.onnx"
        target.write_text("mine")
        assert main(["convert", str(source), str(target)]) == 2
        assert "--overwrite" in capsys.readouterr().err
        with pytest.raises(UserError, match=r"encoder\.json beside it would be replaced"):
            splatlearn.convert(source, source / "encoder.onnx", overwrite=True)
        (tmp_path / "folder.onnx").mkdir()
        with pytest.raises(UserError, match="name a file"):
            splatlearn.convert(source, tmp_path / "folder.onnx", overwrite=True)
        with pytest.raises(UserError, match=r"--encoder\.OPTION goes with weights"):
            splatlearn.convert(source, tmp_path / "b.onnx", encoder_options={"act": "relu"})
        with pytest.raises(UserError, match="weights become a folder first"):
            splatlearn.convert(tmp_path / "a.pth", tmp_path / "b.onnx")

    def test_overwrite_and_dry_run(self, tmp_path, exported, monkeypatch):
        import onnx

        family, _, _, done = exported
        model, target = onnx.load(done.target), tmp_path / "model.onnx"
        monkeypatch.setattr(convert_onnx, "_export", lambda graph: model)
        assert "nothing was written" in str(splatlearn.convert(done.source, target, dry_run=True))
        assert not list(tmp_path.iterdir())
        splatlearn.convert(done.source, target)
        with pytest.raises(UserError, match="already there"):
            splatlearn.convert(done.source, target, dry_run=True)
        target.write_bytes(b"")
        splatlearn.convert(done.source, target, overwrite=True)
        assert onnx.load(target) == model
        other = stored(tmp_path / "b", *MODELS[family], seed=1)
        with pytest.raises(UserError, match="not written: onnxruntime gives other numbers than torch"):
            splatlearn.convert(other, tmp_path / "other.onnx")
        assert not list(tmp_path.glob("*other*"))

    def test_families_that_have_no_graph(self, tmp_path, libraries):
        source = stored(tmp_path / "a", "pointnet2.tiny", {})
        with pytest.raises(UserError, match=r"pointnet2\.tiny: encoders of this family cannot be exported"):
            splatlearn.convert(source, tmp_path / "a.onnx")

    def test_no_encoder(self, tmp_path, libraries):
        with pytest.raises(UserError, match="no encoder here"):
            splatlearn.convert(tmp_path, tmp_path / "a.onnx")
        source = stored(tmp_path / "a", *MODELS["vit"])
        (source / "encoder.json").write_text("words")
        with pytest.raises(BadData, match="not the description of an encoder"):
            splatlearn.convert(source, tmp_path / "a.onnx")

    def test_sizes_beyond_one_file(self, tmp_path, libraries, monkeypatch):
        monkeypatch.setattr(convert_onnx, "LARGEST", 1000)
        with pytest.raises(UserError, match="an ONNX file holds 2 GB"):
            splatlearn.convert(stored(tmp_path / "a", *MODELS["vit"]), tmp_path / "a.onnx")

    def test_an_exporter_that_fails(self, tmp_path, libraries, monkeypatch):
        def fail(*given, **settings):
            raise torch.onnx.OnnxExporterError("no such operator")

        monkeypatch.setattr(torch.onnx, "export", fail)
        with pytest.raises(UserError, match=r"torch .* cannot export this encoder.*no such operator"):
            splatlearn.convert(stored(tmp_path / "a", *MODELS["vit"]), tmp_path / "a.onnx")

    def test_libraries_that_are_missing(self, tmp_path, monkeypatch):
        monkeypatch.setitem(sys.modules, "onnxruntime", None)
        with pytest.raises(UserError, match=r'onnxruntime cannot be imported: pip install "splatlearn\[export\]"'):
            splatlearn.convert(tmp_path, tmp_path / "a.onnx")


def test_cells_of_the_graph_are_the_encoders():
    encoder = encoders.create("waffleiron.tiny", {}).eval()
    graph = graph_of(encoder)
    assert isinstance(graph, WaffleIronGraph)
    cloud = Points(xyz=torch.randn(500, 3) * torch.tensor([30.0, 30.0, 4.0]))
    for plane, (_, width) in enumerate(encoder.config.grids):
        cells = encoder.cells(cloud, plane)
        assert torch.equal(graph._cells(cloud.xyz, plane), cells[:, 0] * width + cells[:, 1])

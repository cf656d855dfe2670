import json

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from data.photo_maker import write_transforms
from splatlearn.data.scene import Rejected
from splatlearn.encoders.base import PointEncoder
from splatlearn.errors import BadData, UserError
from splatlearn.tasks.encoders import resolve_encoder
from splatlearn.verbs.encode import encode, load
from splatlearn.verbs.encode_points import LoadedEncoder
from tasks import worlds


@pytest.fixture(autouse=True)
def toy_world(monkeypatch):
    worlds.register(monkeypatch)


def run(out, **changes):
    options = {"encoder": "random:pointwise", "data": "patches", "data_options": {"scenes": 3, "labelled": False}}
    return encode(**{**options, "out": out, "device": "cpu", **changes})


class TestEncode:
    def test_photographs_without_depth(self, tmp_path):
        write_transforms(tmp_path / "photos")
        with pytest.raises(BadData, match=r"photos: its frames have no depth, so they give no points to encode"):
            run(tmp_path / "out", encoder="random:sparse_unet.tiny", data=str(tmp_path / "photos"), data_options={})

    def test_one_row_per_point_without_labels(self, tmp_path):
        result = run(tmp_path / "out")
        assert dict(result.files) == {f"patch{i}.npy": 400 for i in range(3)}
        features = np.load(tmp_path / "out" / "patch1.npy")
        assert features.shape == (400, 12) and features.dtype == np.float32
        encoder = resolve_encoder("random:pointwise").encoder.eval()
        points = worlds.PatchScene(1, 400, False, ("color", "normal")).points()
        with torch.no_grad():
            torch.testing.assert_close(torch.from_numpy(features), encoder(points).dense())
        manifest = json.loads((tmp_path / "out" / "encode.json").read_text())
        assert manifest["files"]["patch2.npy"] == 400 and manifest["channels"] == 12
        assert not list((tmp_path / "out").glob(".*"))
        assert "1200 rows of 12 channels in 3 files" in str(result)

    @pytest.mark.parametrize("kind", ["npz", "safetensors"])
    def test_formats_with_coordinates_and_all_levels(self, tmp_path, kind):
        run(tmp_path, format=kind, levels="all")
        path = tmp_path / f"patch0.{kind}"
        arrays = dict(np.load(path)) if kind == "npz" else load_file(path)
        assert arrays["features"].shape == (400, 16)
        expected = worlds.PatchScene(0, 400, False, ()).points().xyz.numpy()
        np.testing.assert_array_equal(arrays["xyz"], expected)

    def test_a_recording_gives_a_file_per_frame(self, tmp_path):
        options = {"film": True}
        result = run(tmp_path, data_options=options, format="npz", encoder_options={"inputs": ["color"]}, every=2)
        assert dict(result.files) == {"film-000000.npz": 46, "film-000010.npz": 46}
        assert np.load(tmp_path / "film-000010.npz")["pixel"].tolist() == list(range(2, 48))
        small = run(tmp_path / "s", data_options=options, encoder_options={"inputs": ["color"]}, size=(4, 3), every=2)
        assert set(small.files.values()) == {10}

    def test_frames_that_cannot_be_read_are_left_out_and_listed(self, tmp_path, monkeypatch):
        broken, read = {0}, worlds.FilmScene.frames

        def frames(scene, views, size):
            if broken & set(views):
                raise Rejected("a file cannot be decoded", "film: 0.png: truncated")
            return read(scene, views, size)

        monkeypatch.setattr(worlds.FilmScene, "frames", frames)
        options = {"data_options": {"film": True}, "encoder_options": {"inputs": ["color"]}}
        result = run(tmp_path, **options)
        assert dict(result.files) == {"film-000005.npy": 46, "film-000010.npy": 46}
        manifest = json.loads((tmp_path / "encode.json").read_text())
        assert manifest["skipped"] == {"film-000000.npy": "a file cannot be decoded (film: 0.png: truncated)"}
        assert "left out 1 that cannot be read:\n  film-000000.npy: a file" in str(result)
        broken |= {1, 2}
        with pytest.raises(UserError, match=r"--data patches: nothing can be read: .*truncated"):
            run(tmp_path / "none", **options)
        assert not (tmp_path / "none").exists()

    def test_a_cloud_is_read_once_to_look_and_once_to_encode(self, tmp_path, monkeypatch):
        read, points = [], worlds.PatchScene.points
        monkeypatch.setattr(worlds.PatchScene, "points", lambda scene: read.append(scene.name) or points(scene))
        run(tmp_path)
        assert sorted(read) == ["patch0", "patch0", "patch1", "patch1", "patch2", "patch2"]

    @pytest.mark.parametrize("wrong", [BadData("the last is damaged"), KeyboardInterrupt()])
    def test_what_was_stopped_can_be_repeated(self, tmp_path, monkeypatch, wrong):
        read, calls = worlds.PatchScene.points, []

        def points(scene):
            calls.append(scene.name)
            if len(calls) == 6:  # three to look at, then the third to encode
                raise wrong
            return read(scene)

        monkeypatch.setattr(worlds.PatchScene, "points", points)
        with pytest.raises(type(wrong)):
            run(tmp_path)
        assert not list(tmp_path.iterdir())
        assert len(run(tmp_path).files) == 3

    def test_what_has_no_effect_on_clouds_is_told(self, tmp_path):
        with pytest.warns(UserWarning, match="--size and --every have no effect: --data patches has clouds"):
            run(tmp_path, size=(4, 3), every=2)

    def test_nothing_is_overwritten(self, tmp_path):
        (tmp_path / "patch2.npy").write_bytes(b"mine")
        with pytest.raises(UserError, match=r"patch2.npy exist and are not overwritten"):
            run(tmp_path)
        assert [p.name for p in tmp_path.iterdir()] == ["patch2.npy"]
        assert (tmp_path / "patch2.npy").read_bytes() == b"mine"

    def test_missing_channel_writes_nothing(self, tmp_path):
        with pytest.raises(UserError, match=r"takes normal, which --data patches \(patch0\) does not have"):
            run(tmp_path / "out", data_options={"channels": "[color]"})
        assert not (tmp_path / "out").exists()

    def test_height_needs_up(self, tmp_path):
        with pytest.raises(UserError, match=r"takes the height, but the up axis of .*film.* is unknown"):
            run(tmp_path, encoder="raw", data_options={"film": True})

    def test_bad_arguments(self, tmp_path):
        with pytest.raises(UserError, match="--every: 1 or more"):
            run(tmp_path, every=0)
        with pytest.raises(UserError, match="--size: a width and height of 1 or more"):
            run(tmp_path, size=(0, 0))
        (tmp_path / "file").write_bytes(b"mine")
        with pytest.raises(UserError, match=r"--out .*file: this is a file; name a folder"):
            run(tmp_path / "file")
        with pytest.raises(UserError, match="--device nonsense: not available"):
            run(tmp_path, device="nonsense")
        with pytest.raises(UserError) as caught:
            run(tmp_path / "file", every=0, size=(0, 1), device="x", data="nowhere", encoder="bogus")
        starts = [line.split(":")[0] for line in str(caught.value).splitlines()]
        out = f"--out {tmp_path / 'file'}"
        assert starts == ["--every", "--size", out, "--device x", "--data nowhere", "--encoder bogus"]


class TestLoad:
    xyz = np.random.default_rng(0).random((50, 3))
    color = np.random.default_rng(1).integers(0, 256, (50, 3), dtype=np.uint8)
    normal = np.tile([0.0, 0.0, 1.0], (50, 1))

    def test_arrays_in_and_out(self):
        encoder = load("random:pointwise", device="cpu")
        assert encoder.inputs == ("color", "normal")
        features = encoder.encode(self.xyz, color=self.color, normal=self.normal)
        again = encoder.encode(self.xyz, color=self.color / 255, normal=self.normal)
        assert features.shape == (50, 12) and features.dtype == np.float32
        np.testing.assert_allclose(features, again, atol=1e-6)

    def test_permuted_points_give_permuted_rows(self):
        encoder, order = load("random:pointwise", device="cpu"), np.random.default_rng(2).permutation(50)
        features = encoder.encode(self.xyz, color=self.color, normal=self.normal)
        turned = encoder.encode(self.xyz[order], color=self.color[order], normal=self.normal[order])
        np.testing.assert_allclose(turned, features[order], atol=1e-6)

    def test_no_points_give_no_rows(self):
        nothing = np.zeros((0, 3))
        features = load("random:pointwise").encode(nothing, color=nothing, normal=nothing, levels="all")
        assert features.shape == (0, 16)

    @pytest.mark.parametrize(
        ("given", "message"),
        [
            ({}, "takes color, normal, which the call does not have"),
            ({"colour": xyz}, "unknown channel 'colour'; did you mean 'color'"),
            ({"color": xyz[:7]}, r"color must be \(50, 3\), one row a point; got \(7, 3\)"),
            ({"color": xyz * 300}, r"color must lie in \[0, 1\] or be uint8"),
            ({"normal": np.full((50, 3), np.nan)}, "normal has 150 values that are not finite"),
        ],
    )
    def test_bad_arrays(self, given, message):
        encoder = load("random:pointwise")
        with pytest.raises(UserError, match=message):
            encoder.encode(self.xyz, **given)

    def test_coordinates_in_columns(self):
        with pytest.raises(UserError, match=r"xyz must be \(N, 3\), one row a point; got \(3, 50\)"):
            load("random:pointwise").encode(self.xyz.T, color=self.xyz, normal=self.xyz)


@pytest.mark.parametrize("name", ["sparse_unet.tiny", "pointnet2.tiny"])
def test_half_a_million_points_in_any_order(name):
    """Every point of a large cloud gets its row, and an order of the points changes nothing but the rows' order."""
    rng = np.random.default_rng(0)
    xyz = (rng.random((500_000, 3)) * [8, 6, 2.5]).astype(np.float32)
    xyz[:, 2] *= rng.random(500_000) < 0.5
    color = rng.random((500_000, 3), dtype=np.float32)
    encoder: PointEncoder = resolve_encoder(f"random:{name}").encoder
    loaded, order = LoadedEncoder(encoder, "cpu"), rng.permutation(500_000)
    features = loaded.encode(xyz, color=color)
    assert features.shape == (500_000, encoder.channels[0])
    assert np.isfinite(features).all()
    turned = loaded.encode(xyz[order], color=color[order])
    np.testing.assert_allclose(turned, features[order], rtol=1e-4, atol=1e-5)

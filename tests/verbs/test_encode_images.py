"""`encode` and `load` for images: grids, sizes, levels, what is left out and what is refused."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.numpy import load_file

from data.photo_maker import write_transforms
from splatlearn import registry
from splatlearn.cli import main
from splatlearn.encoders.patches import fit_images
from splatlearn.engine.checkpoint import describe_encoder, digest
from splatlearn.errors import UserError
from splatlearn.tasks.encoders import seeded
from splatlearn.verbs.encode import encode, load
from splatlearn.verbs.encode_images import LoadedImageEncoder, nearest_multiple
from tasks import worlds
from verbs.run_maker import WIDTH, write_run, write_weights

NAME = "random:vit.tiny"
RNG = np.random.default_rng(0)
PHOTO = RNG.integers(0, 256, (40, 60, 3), dtype=np.uint8)


@pytest.fixture
def photos(tmp_path):
    """Two photographs of unlike sizes, one of them in a folder below."""
    (tmp_path / "photos" / "b").mkdir(parents=True)
    Image.fromarray(PHOTO).save(tmp_path / "photos" / "a.png")
    Image.fromarray(PHOTO[:30, :10]).save(tmp_path / "photos" / "b" / "c.png")
    return tmp_path / "photos"


@pytest.fixture(scope="module")
def vit():
    with seeded(0):
        return registry.encoders.create("vit.tiny").eval()


@pytest.fixture(scope="module")
def loaded():
    return load(NAME, device="cpu")


def run(data, out, **changes):
    return encode(**{"encoder": NAME, "data": str(data), "out": out, "device": "cpu", **changes})


def maps(vit, grid, photo=PHOTO):
    """What the encoder itself gives for an image at a grid of (width, height) tokens."""
    pixels = torch.from_numpy(photo).permute(2, 0, 1)[None].float() / 255
    with torch.no_grad():
        return vit(fit_images(pixels, grid, vit.patch))


class TestEncode:
    def test_a_grid_of_every_image(self, photos, tmp_path, vit):
        result = run(photos, tmp_path / "out")
        assert dict(result.files) == {"a.png.npy": 12, "b-c.png.npy": 2}
        features = np.load(tmp_path / "out" / "a.png.npy")
        expected = maps(vit, (4, 3)).levels[-1][0].permute(1, 2, 0)
        assert features.shape == (3, 4, 32) and features.dtype == np.float32
        np.testing.assert_allclose(features, expected, atol=1e-5)
        assert np.load(tmp_path / "out" / "b-c.png.npy").shape == (2, 1, 32), "never smaller than one patch"
        manifest = json.loads((tmp_path / "out" / "encode.json").read_text())
        assert manifest["grids"] == {"a.png.npy": [4, 3], "b-c.png.npy": [1, 2]}
        known = {"patch": 14, "channels": 32, "levels": "finest", "level_numbers": [2], "encoder": NAME, "skipped": {}}
        assert {name: manifest[name] for name in known} == known
        assert "14 rows of 32 channels in 2 files" in str(result) and "grids (h w C)" in str(result)
        assert not list((tmp_path / "out").glob(".*"))

    @pytest.mark.parametrize("kind", ["npz", "safetensors"])
    def test_formats_with_all_levels_and_what_is_beside_them(self, photos, tmp_path, kind, vit):
        run(photos, tmp_path / "out", format=kind, levels="all", size=(28, 42))
        path = tmp_path / "out" / f"a.png.{kind}"
        arrays = dict(np.load(path)) if kind == "npz" else load_file(path)
        expected = maps(vit, (2, 3))
        together = torch.cat(expected.levels, 1)[0].permute(1, 2, 0)
        np.testing.assert_allclose(arrays["features"], together, atol=1e-5)
        np.testing.assert_allclose(arrays["summary"], expected.summary[0], atol=1e-5)
        assert arrays["size"].tolist() == [28, 42] and arrays["native"].tolist() == [60, 40] and arrays["patch"] == 14
        assert json.loads((tmp_path / "out" / "encode.json").read_text())["level_numbers"] == [0, 1, 2]

    def test_a_recording_gives_a_file_a_view(self, tmp_path):
        write_transforms(tmp_path / "photos", frames=4)
        result = run(tmp_path / "photos", tmp_path / "out", every=2)
        assert dict(result.files) == {f"photos-00000{frame}.npy": 35 for frame in (1, 3)}

    def test_each_nth_photograph(self, photos, tmp_path):
        assert list(run(photos, tmp_path / "out", every=2).files) == ["a.png.npy"]

    def test_damaged_images_are_left_out_and_listed(self, photos, tmp_path):
        whole = (photos / "a.png").read_bytes()
        (photos / "cut.png").write_bytes(whole[: len(whole) // 2])
        broken = bytearray(whole)
        broken[100:200] = bytes(100)
        (photos / "rot.png").write_bytes(broken)  # its header and its end are whole
        result = run(photos, tmp_path / "out")
        assert list(result.files) == ["a.png.npy", "b-c.png.npy"]
        skipped = json.loads((tmp_path / "out" / "encode.json").read_text())["skipped"]
        assert set(skipped) == {"cut.png.npy", "rot.png.npy"}
        assert "ends early" in skipped["cut.png.npy"] and "cannot be" in skipped["rot.png.npy"]
        assert "left out 2 that cannot be read" in str(result)

    def test_nothing_that_can_be_read(self, photos, tmp_path):
        for path in photos.rglob("*.png"):
            broken = bytearray(path.read_bytes())
            broken[60:160] = bytes(100)
            path.write_bytes(broken)
        with pytest.raises(UserError, match="nothing can be read: an image cannot be read"):
            run(photos, tmp_path / "out")
        assert not (tmp_path / "out").exists()

    def test_nothing_is_overwritten_or_left_half_done(self, photos, tmp_path, monkeypatch):
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "b-c.png.npy").write_bytes(b"mine")
        with pytest.raises(UserError, match=r"b-c.png.npy exist and are not overwritten"):
            run(photos, tmp_path / "out")
        (tmp_path / "out" / "b-c.png.npy").unlink()
        monkeypatch.setattr("splatlearn.verbs.encode._write", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            run(photos, tmp_path / "out")
        assert not list((tmp_path / "out").iterdir())

    def test_a_size_that_the_patch_does_not_divide(self, photos, tmp_path):
        with pytest.raises(
            UserError, match=r"--size 30,28: multiples of the patch of 14 pixels of .*vit.* are .*as 28,28"
        ):
            run(photos, tmp_path / "out", size=(30, 28))
        assert not (tmp_path / "out").exists()

    def test_data_without_images(self, tmp_path, monkeypatch):
        worlds.register(monkeypatch)
        with pytest.raises(UserError, match="--data patches: the encoder takes images, and patch0 has no images"):
            run("patches", tmp_path / "out")

    def test_of_a_run(self, photos, tmp_path, vit):
        from safetensors.torch import save_file

        (tmp_path / "run").mkdir()
        vit.name = "vit.tiny"
        save_file(vit.state_dict(), tmp_path / "run" / "encoder.safetensors")
        (tmp_path / "run" / "encoder.json").write_text(json.dumps(describe_encoder(vit)))
        run(photos, tmp_path / "out", encoder=str(tmp_path / "run"))
        run(photos, tmp_path / "same")
        np.testing.assert_array_equal(*(np.load(tmp_path / name / "a.png.npy") for name in ("out", "same")))

    def test_a_projector_of_a_run(self, photos, tmp_path):
        folder = write_run(tmp_path / "run", "t")
        words = ["--data", str(photos), "--out", str(tmp_path / "out"), "--size", "56,42", "--device", "cpu"]
        assert main(["encode", "--encoder", str(folder), "--encoder.projector", "t", *words]) == 0
        manifest = json.loads((tmp_path / "out" / "encode.json").read_text())
        assert np.load(tmp_path / "out" / "a.png.npy").shape == (3, 4, WIDTH)
        assert manifest["encoder_options"] == {"projector": "t"} and "seed" not in manifest
        assert manifest["weights"] == digest(folder / "encoder.safetensors")

    def test_a_teacher_with_weights(self, photos, tmp_path):
        weights = write_weights(tmp_path / "w.safetensors")
        words = ["--data", str(photos), "--out", str(tmp_path / "out"), "--device", "cpu"]
        options = ["--encoder.weights", str(weights), "--encoder.width", "0.125"]
        assert main(["encode", "--encoder", "teacher:squeezenet", *options, *words]) == 0
        manifest = json.loads((tmp_path / "out" / "encode.json").read_text())
        assert manifest["encoder_options"] == {"weights": str(weights), "width": "0.125"}
        assert manifest["weights"] == digest(weights) and "seed" not in manifest

    def test_what_was_encoded_is_told(self, photos, tmp_path):
        run(photos, tmp_path / "out", seed=7, encoder_options={"levels": (0, 2)})
        manifest = json.loads((tmp_path / "out" / "encode.json").read_text())
        assert manifest["encoder"] == NAME and manifest["seed"] == 7 and "weights" not in manifest
        assert manifest["encoder_options"] == {"levels": [0, 2]}

    def test_photographs_named_like_a_recording(self, tmp_path):
        (tmp_path / "photos").mkdir()
        Image.fromarray(PHOTO).save(tmp_path / "photos" / "frame-000100.color.jpg")
        with pytest.raises(UserError, match=r"`--data\.reader images` reads them as photographs"):
            run(tmp_path / "photos", tmp_path / "out")
        result = run(tmp_path / "photos", tmp_path / "out", data_options={"reader": "images"})
        assert dict(result.files) == {"frame-000100.color.jpg.npy": 12}


def test_nearest_multiples():
    assert nearest_multiple((60, 40), 14) == (56, 42)
    assert nearest_multiple((3, 21), 14) == (14, 28)


class TestLoad:
    def test_arrays_in_and_out(self, loaded, vit, tmp_path):
        assert isinstance(loaded, LoadedImageEncoder) and (loaded.patch, loaded.channels) == (14, (32, 32, 32))
        grid, expected = loaded.encode(PHOTO), maps(vit, (4, 3))
        assert grid.shape == (3, 4, 32) and grid.dtype == np.float32
        np.testing.assert_allclose(grid, expected.levels[-1][0].permute(1, 2, 0), atol=1e-5)
        np.testing.assert_allclose(loaded.summary(PHOTO), expected.summary[0], atol=1e-5)
        np.testing.assert_allclose(loaded.encode(PHOTO / 255), grid, atol=1e-5)
        Image.fromarray(PHOTO).save(tmp_path / "a.png")
        for path in (tmp_path / "a.png", str(tmp_path / "a.png")):
            np.testing.assert_array_equal(loaded.encode(path), grid)

    def test_batches_levels_and_sizes(self, loaded):
        both = np.stack([PHOTO, PHOTO[::-1]])
        grids = loaded.encode(both, levels="all", size=(28, 56))
        assert grids.shape == (2, 4, 2, 96) and loaded.summary(both).shape == (2, 32)
        np.testing.assert_allclose(loaded.encode(PHOTO, size=(28, 56)), grids[0, ..., 64:], atol=1e-5)
        assert loaded.encode(both[:0]).shape == (0, 3, 4, 32)

    @pytest.mark.parametrize(
        ("given", "message"),
        [
            (PHOTO[..., 0], r"images must be \(H, W, 3\) or \(V, H, W, 3\), RGB; got \(40, 60\)"),
            (PHOTO.transpose(2, 0, 1), r"RGB; got \(3, 40, 60\)"),
            (PHOTO[:0], r"RGB; got \(0, 60, 3\)"),
            (PHOTO.astype(np.int64), r"uint8, or floats in \[0, 1\]; got int64"),
            (PHOTO / 1.0, r"must lie in \[0, 1\] or be uint8; got 0 to 255"),
            (np.full((4, 4, 3), np.nan), "48 values that are not finite"),
            ("nowhere.png", "nowhere.png: .*No such file"),
        ],
    )
    def test_bad_images(self, loaded, given, message):
        with pytest.raises(UserError, match=message):
            loaded.encode(given)

    def test_a_bad_size(self, loaded):
        with pytest.raises(UserError, match="size 14,15: multiples of the patch of 14"):
            loaded.encode(PHOTO, size=(14, 15))

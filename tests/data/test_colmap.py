"""COLMAP's sparse models: both encodings, where they lie, damaged files."""

import struct
import tracemalloc

import numpy as np
import pytest
import torch

from data.photo_maker import OPENCV, SIZE, colmap_camera, lens, photograph, truth, write_colmap, write_model
from data.recording_maker import camera_path
from splatlearn.data import colmap
from splatlearn.data.photos import PhotoScene, PhotosConfig, PhotosReader
from splatlearn.errors import BadData

BEND = ("OPENCV", "FULL_OPENCV", "OPENCV_FISHEYE", "SIMPLE_RADIAL", "THIN_PRISM_FISHEYE")


def read(folder, **options) -> PhotoScene:
    scene = PhotosReader(PhotosConfig(**{"up": "known", **options}), folder).scenes()[0]
    assert isinstance(scene, PhotoScene)
    return scene


def message(folder, **options) -> str:
    with pytest.raises(BadData) as caught:
        read(folder, **options).points()
    return str(caught.value)


@pytest.fixture
def capture(tmp_path):
    write_colmap(tmp_path)
    return tmp_path


class TestModel:
    @pytest.mark.parametrize("kind", colmap.ENCODINGS)
    def test_round_trip(self, tmp_path, kind):
        points = write_colmap(tmp_path, kind=kind)
        scene = read(tmp_path)
        assert (scene.name, scene.up, scene.metric, scene.split, scene.skipped) == (
            tmp_path.name,
            "known",
            "unknown",
            "",
            (),
        )
        poses = torch.from_numpy(camera_path(4))
        assert torch.allclose(scene.cameras.camera_to_world.double(), poses, atol=1e-5)
        assert scene.cameras["frame"].tolist() == [1, 2, 3, 4]
        cloud = scene.points()
        assert np.allclose(cloud.xyz.numpy(), points, atol=1e-6)
        assert torch.allclose(cloud["color"][2], torch.tensor([80 / 255, 0, 1]))
        assert torch.allclose(cloud["error"], torch.arange(6) / 10)
        assert cloud["track"].tolist() == [2, 3, 4, 5, 6, 7]

    @pytest.mark.parametrize("place", colmap.PLACES)
    def test_places(self, tmp_path, place):
        write_colmap(tmp_path, place=place)
        assert len(read(tmp_path).cameras) == 4

    def test_the_photographs_are_those_of_the_pinhole(self, capture):
        scene = read(capture)
        matrix = scene.cameras.intrinsics[2].double().numpy()
        color, _ = truth(camera_path(4)[2], matrix, SIZE)
        found = scene.images([2])[0].numpy()
        assert np.abs(found - color).mean() < 0.006
        bent = photograph(camera_path(4)[2], lens())[0].transpose(2, 0, 1) / 255
        assert np.abs(bent - color).mean() > 5 * np.abs(found - color).mean(), "the lens matters here"

    def test_points_land_where_the_lens_saw_them(self, capture):
        """The same point, through the lens onto the photograph, and through the pinhole onto what was made of it."""
        scene, camera = read(capture), lens()
        cloud = scene.points().xyz
        pixels, z = scene.cameras.project(cloud, torch.full((len(cloud),), 1))
        pose = np.linalg.inv(camera_path(4)[1])
        seen = cloud.double().numpy() @ pose[:3, :3].T + pose[:3, 3]
        on_disk = camera.project(seen[:, :2] / seen[:, 2:])
        slopes = (pixels.double().numpy() - camera.centre) / scene.cameras.intrinsics[1].diagonal()[:2].double().numpy()
        assert np.allclose(camera.project(slopes), on_disk, atol=1e-3)
        assert bool((z > 0).all())

    @pytest.mark.parametrize("model", BEND)
    @pytest.mark.parametrize("kind", colmap.ENCODINGS)
    def test_cameras(self, tmp_path, model, kind):
        values = OPENCV | {"f": 80.0, "k3": 0.01, "k4": 0.02, "k5": 0.0, "k6": 0.001, "sx1": 0.002, "sy1": 0.0}
        camera = lens(model, SIZE, **{name: values[name] for name in colmap.MODELS[model].parameters})
        write_colmap(tmp_path, frames=2, camera=camera, kind=kind)
        scene = read(tmp_path)
        assert scene._table.photos[0].lens == camera
        assert f"2 photographs of a lens {model}: distortion is removed" in scene.notes[0]
        color, _ = truth(camera_path(2)[1], scene.cameras.intrinsics[1].double().numpy(), SIZE)
        assert np.abs(scene.images([1])[0].numpy() - color).mean() < 0.006

    def test_names_with_spaces_and_folders(self, tmp_path):
        write_colmap(tmp_path, frames=2, kind="txt")
        (tmp_path / "images/left cam").mkdir()
        (tmp_path / "images/v2.png").rename(tmp_path / "images/left cam/a 2.png")
        text = (tmp_path / "sparse/0/images.txt").read_text().replace("v2.png", "left cam/a 2.png")
        (tmp_path / "sparse/0/images.txt").write_text(text)
        assert len(read(tmp_path).cameras) == 2

    def test_binary_comes_before_text(self, capture):
        (capture / "sparse/0/cameras.txt").write_text("nonsense")
        (capture / "sparse/0/images.txt").write_text("nonsense")
        assert len(read(capture).cameras) == 4

    def test_other_models_are_named_and_can_be_chosen(self, capture):
        camera, poses = colmap_camera(1, lens()), camera_path(2)
        views = [(f"v{i + 1}.png", poses[i], 1) for i in range(2)]
        write_model(capture / "sparse/1", [camera], views, np.zeros((0, 3)), "txt")
        assert "sparse/ holds other models (1): --data.model chooses one" in read(capture).notes
        assert len(read(capture, model="sparse/1").cameras) == 2

    def test_no_points(self, capture):
        (capture / "sparse/0/points3D.bin").unlink()
        scene = read(capture)
        assert "no points3D file: the scene has no cloud" in scene.notes
        with pytest.raises(Exception, match="has no point cloud: no points3D file"):
            scene.points()

    def test_several_cameras(self, tmp_path):
        """Two lenses, one of them of half the size: one scene at the size of most."""
        write_colmap(tmp_path, frames=3)
        small = lens("PINHOLE", (48, 36), fx=40, fy=40, cx=24, cy=18)
        from PIL import Image

        Image.fromarray(photograph(camera_path(3)[2], small)[0]).save(tmp_path / "images/v3.png")
        views = [(f"v{i + 1}.png", camera_path(3)[i], 1 if i < 2 else 5) for i in range(3)]
        cameras = [colmap_camera(1, lens()), colmap_camera(5, small)]
        write_model(tmp_path / "sparse/0", cameras, views, np.zeros((1, 3)), "bin")
        scene = read(tmp_path)
        assert (scene.cameras.width, scene.cameras.height) == SIZE
        assert "1 photographs are resized to 96x72, the size of most" in scene.notes
        assert scene.cameras.intrinsics[2].tolist() == [[80, 0, 48], [0, 80, 36], [0, 0, 1]]
        color, _ = truth(camera_path(3)[2], scene.cameras.intrinsics[2].double().numpy(), SIZE)
        assert np.abs(scene.images([2])[0].numpy() - color).mean() < 0.01


class TestSkipped:
    def test_each_has_its_reason(self, tmp_path):
        write_colmap(tmp_path, frames=4)
        poses = camera_path(9)
        far = poses[7].copy()
        far[:3, 3] = 1e12
        views = [(f"v{i + 1}.png", poses[i], 1) for i in range(4)]
        views += [("../v1.png", poses[4], 1), ("/etc/passwd", poses[4], 1), ("v9.png", poses[5], 1)]
        views += [("v1.png", poses[4], 1), ("x.png", poses[6], 77), ("far.png", far, 1), ("zero.png", poses[8], 2)]
        cameras = [colmap_camera(1, lens()), (2, "PINHOLE", *SIZE, (0.0, 80.0, 48.0, 36.0))]
        write_model(tmp_path / "sparse/0", cameras, views, np.zeros((1, 3)), "bin")
        scene = read(tmp_path)
        assert len(scene.cameras) == 4
        assert dict(scene.skipped) == {
            "../v1.png": "its name leads out of the folder",
            "/etc/passwd": "its name leads out of the folder",
            "v9.png": "photograph: the file is missing",
            "v1.png": "listed twice: the first usable one is taken",
            "x.png": "camera 77 is not in the model",
            "far.png": "pose: more than 1e+09 units from the origin",
            "zero.png": "camera: focal lengths of 0 and 80 px for 96x72",
        }

    def test_poses(self, capture):
        path = capture / "sparse/0/images.bin"
        data = bytearray(path.read_bytes())
        data[12:44] = struct.pack("<4d", 0, 0, 0, 0)
        path.write_bytes(data)
        assert dict(read(capture).skipped) == {"v1.png": "pose: a quaternion of length 0"}
        data[12:44] = struct.pack("<4d", float("nan"), 0, 0, 0)
        path.write_bytes(data)
        assert dict(read(capture).skipped) == {"v1.png": "pose: not finite"}

    def test_models_without_a_formula(self, capture):
        camera = (1, "FOV", *SIZE, (80.0, 80.0, 48.0, 36.0, 0.9))
        views = [(f"v{i + 1}.png", camera_path(2)[i], 1) for i in range(2)]
        write_model(capture / "sparse/0", [camera], views, np.zeros((1, 3)), "bin")
        assert "2 x camera: lens distortion of the model FOV is not removed here (first: v1.png)" in message(capture)

    def test_photographs_elsewhere(self, capture):
        (capture / "images").rename(capture / "rgb")
        assert "4 x photograph: the file is missing (first: v1.png); --data.images FOLDER" in message(capture)
        assert len(read(capture, images="rgb").cameras) == 4


def damage(capture, name: str, at: int, layout: str, value: float) -> None:
    path = capture / "sparse/0" / name
    data = bytearray(path.read_bytes())
    struct.pack_into(layout, data, at, value)
    path.write_bytes(data)


class TestDamagedBinary:
    @pytest.mark.parametrize("name", ["cameras", "images", "points3D"])
    def test_every_truncation_is_told(self, capture, name):
        path = capture / "sparse/0" / f"{name}.bin"
        whole = path.read_bytes()
        for length in range(len(whole)):
            path.write_bytes(whole[:length])
            with pytest.raises(BadData) as caught:
                colmap.read_capture(capture, path.parent, "")
                colmap.read_points(path.parent / "points3D.bin")
            text = str(caught.value)
            assert str(path) in text
            assert "the file is empty" in text or "truncated" in text or "declares" in text or "no end" in text
        path.write_bytes(whole + b"\0")
        assert "1 bytes are left over after the" in message(capture)

    @pytest.mark.parametrize("name", ["cameras", "images", "points3D"])
    @pytest.mark.parametrize("count", [10**12, 2**64 - 1])
    def test_absurd_counts(self, capture, name, count):
        damage(capture, f"{name}.bin", 0, "<Q", count)
        tracemalloc.start()
        assert f"declares {count} {'points' if name == 'points3D' else name}, but its" in message(capture)
        assert tracemalloc.get_traced_memory()[1] < 20e6
        tracemalloc.stop()

    def test_absurd_features_and_tracks(self, capture):
        damage(capture, "images.bin", 8 + 64 + 7, "<Q", 10**12)
        assert "ends early (truncated): 24000000000000 bytes expected at offset 87" in message(capture)
        write_colmap(capture)
        damage(capture, "points3D.bin", 8 + 43, "<Q", 10**12)
        assert "points3D.bin: ends early (truncated): 8000000000000 bytes expected" in message(capture)

    def test_unknown_camera_model(self, capture):
        damage(capture, "cameras.bin", 12, "<i", 99)
        assert "camera model 99 at offset 8 is unknown (known: 0 SIMPLE_PINHOLE, 1 PINHOLE" in message(capture)

    def test_camera_twice(self, capture):
        camera = colmap_camera(1, lens())
        write_model(capture / "sparse/0", [camera, camera], [], np.zeros((0, 3)), "bin")
        assert "camera 1 is there twice" in message(capture)

    def test_no_image(self, capture):
        write_model(capture / "sparse/0", [colmap_camera(1, lens())], [], np.zeros((0, 3)), "bin")
        assert "images.bin: no image is registered in this model" in message(capture)

    def test_points_that_are_not_finite(self, capture):
        damage(capture, "points3D.bin", 16, "<d", float("nan"))
        assert "points3D.bin: 1 of 6 points are not finite" in message(capture)
        damage(capture, "points3D.bin", 16, "<d", 1e300)
        assert "points3D.bin: 1 of 6 points are not finite" in message(capture)

    def test_any_flipped_byte_is_read_or_told(self, capture):
        rng = np.random.default_rng(0)
        for name in ("cameras", "images", "points3D"):
            path = capture / "sparse/0" / f"{name}.bin"
            whole = path.read_bytes()
            for _ in range(60):
                data = bytearray(whole)
                for at in rng.integers(len(data), size=3):
                    data[at] = rng.integers(256)
                path.write_bytes(data)
                try:
                    scene = read(capture)
                    assert torch.isfinite(scene.cameras.world_to_camera).all()
                    assert torch.isfinite(scene.points().xyz).all()
                except BadData as error:
                    assert str(capture) in str(error)
            path.write_bytes(whole)


class TestDamagedText:
    @pytest.mark.parametrize(
        ("name", "old", "new", "expected"),
        [
            ("cameras", "OPENCV", "OPENVC", "camera model 'OPENVC' is unknown; did you mean 'OPENCV'?"),
            ("cameras", " 72 ", " tall ", "line 2: CAMERA_ID MODEL WIDTH HEIGHT PARAMS[] expected, got '1 OPENCV 96"),
            ("cameras", " 49.0 ", " ", "line 2: OPENCV takes fx fy cx cy k1 k2 p1 p2, got 7 numbers"),
            ("images", "v1.png", "", "line 2: IMAGE_ID QW QX QY QZ TX TY TZ CAMERA_ID NAME"),
            ("images", "1 v1", "one v1", "line 2: IMAGE_ID QW QX QY QZ"),
            ("images", "1.5 2.5 7", "1.5 2.5", "line 5: X Y POINT3D_ID of each feature expected, got '1.5 2.5'"),
            ("points3D", " 255 ", " 256 ", "line 2: POINT3D_ID X Y Z R G B ERROR TRACK[] expected, got '1 4.0"),
            ("points3D", "4.0", "four", "line 2: POINT3D_ID X Y Z R G B ERROR TRACK[] expected"),
        ],
    )
    def test_told_with_the_line(self, tmp_path, name, old, new, expected):
        write_colmap(tmp_path, frames=2, kind="txt")
        path = tmp_path / "sparse/0" / f"{name}.txt"
        path.write_text(path.read_text().replace(old, new, 1))
        text = message(tmp_path)
        assert str(path) in text and expected in text

    def test_a_missing_line_of_features(self, tmp_path):
        """Without the empty line the next image would be taken for features, and be lost without a word."""
        write_colmap(tmp_path, frames=3, kind="txt")
        path = tmp_path / "sparse/0/images.txt"
        path.write_text(path.read_text().replace("v1.png\n\n", "v1.png\n"))
        assert "line 3: X Y POINT3D_ID of each feature expected" in message(tmp_path)

    def test_an_endless_line(self, tmp_path):
        write_colmap(tmp_path, frames=2, kind="txt")
        (tmp_path / "sparse/0/cameras.txt").write_text("1" * (1 << 22))
        assert "cameras.txt: line 1 is longer than 4194304 characters" in message(tmp_path)
